"""Which words an image token is near, and whether they are the words of what it shows.

Input lens: rows of the word table. Logit lens: the output head on a hidden state. Contextual lens (LatentLens,
2602.00462): hidden states of words in real sentences, at the same layer.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from smoljax.analysis.geometry import unit

Metric = Literal["cosine", "dot", "l2"]
BLOCK = 1024  # vectors whose scores exist at a time


def nearest_rows(x: np.ndarray, rows: np.ndarray, k: int = 1, metric: Metric = "cosine") -> np.ndarray:
    """[n, k] indices of the rows nearest to each vector, best first.

    Args:
      x: [n, D].
      rows: [V, D].
      k: how many.
      metric: "cosine", "dot" (as logits), or "l2".
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}; it must be {', '.join(get_args(Metric))}")
    lengths = np.square(rows).sum(-1)
    if metric == "cosine":
        x, rows = unit(x), unit(rows)
    found = []
    for start in range(0, len(x), BLOCK):
        scores = x[start : start + BLOCK] @ rows.T
        if metric == "l2":
            scores = 2 * scores - lengths
        best = np.argpartition(-scores, k - 1, axis=-1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=-1), axis=-1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=-1))
    return np.concatenate([*found, np.empty((0, k), int)]).astype(int)


def hit_rate(found: np.ndarray, true: Sequence[frozenset[int] | set[int]]) -> float:
    """The share of tokens among whose found words is one of the true ones; NaN for no token.

    Args:
      found: [n, k] word ids.
      true: the ids of the words that name what each token shows.
    """
    hits = [bool(set(row) & words) for row, words in zip(found.tolist(), true, strict=True)]
    return float(np.mean(hits)) if hits else float("nan")


def hit_rate_null(
    found: np.ndarray, true: Sequence[frozenset[int] | set[int]], *, shuffles: int = 20, seed: int = 0
) -> float:
    """The mean `hit_rate` with the true words of other tokens: what naming frequent things alone would reach."""
    rng = np.random.default_rng(seed)
    return float(
        np.mean([hit_rate(found, [true[i] for i in rng.permutation(len(true))]) for _ in range(shuffles)])
    )


def word_entropy(ids: np.ndarray) -> float:
    """Entropy in bits of the words that tokens are nearest to: 0 where all are near one word, a hub."""
    _, count = np.unique(ids, return_counts=True)
    share = count / count.sum()
    return float(-(share * np.log2(share)).sum())
