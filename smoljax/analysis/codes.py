"""How a connector uses the rows of the table that it mixes or chooses from."""

import numpy as np


def code_use(codes: np.ndarray, threshold: float = 1e-3) -> dict[str, float]:
    """Use of K rows by n tokens.

    Args:
      codes: [n, K] weights, each row summing to 1.
      threshold: a row is dead where its mean weight is below this share of 1/K.

    Returns:
      `perplexity`, exp of the entropy of the mean weights: K where all rows are used alike, 1 for one row;
      `token_perplexity`, the mean over tokens of exp of its own entropy: 1 where each token takes one row;
      `dead`, the share of dead rows.
    """
    mean, own = np.zeros(codes.shape[1]), 0.0
    for start in range(0, len(codes), 512):  # a real vocabulary's weights are large
        block = codes[start : start + 512].astype(np.float64)
        mean += block.sum(0) / len(codes)
        own += np.exp(_entropy(block)).sum() / len(codes)
    return {
        "perplexity": float(np.exp(_entropy(mean))),
        "token_perplexity": float(own),
        "dead": float((mean < threshold / codes.shape[1]).mean()),
    }


def _entropy(p: np.ndarray) -> np.ndarray:
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))
    return -(p * logs).sum(-1)
