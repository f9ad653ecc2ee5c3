"""Word rows that a model never learned, drawn anew before it is trained on words that need them.

A tied table's rows are also the output's. Words that training never shows are pushed away from every answer, all in
the same direction: their rows end up long and nearly equal (cosine 0.99 in smolvlm-nano), and fine-tuning that needs
two of them apart as input stays on a plateau.
"""

import numpy as np


def unlearned_rows(table: np.ndarray, cosine: float) -> np.ndarray:
    """The indices of rows whose direction another row shares: their cosine with the nearest is above `cosine`.

    Args:
      table: [V, D].
      cosine: below 1; 0.9 tells learned rows (0.3 to 0.7 in smolvlm-nano) from unlearned ones (0.99).
    """
    rows = table.astype(np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    nearest = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), 1024):  # no V×V matrix of a large vocabulary
        block = rows[first : first + 1024] @ rows.T
        block[np.arange(len(block)), first + np.arange(len(block))] = -1
        nearest[first : first + 1024] = block.max(axis=-1)
    return np.flatnonzero(nearest > cosine)


def with_fresh_rows(table: np.ndarray, cosine: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The table with its unlearned rows drawn from the learned rows' mean and spread, each dimension by itself.

    Returns:
      The table, and the indices of the rows that are new. Where all rows or none are unlearned it is unchanged.
    """
    fresh = unlearned_rows(table, cosine)
    learned = np.delete(table, fresh, axis=0).astype(np.float32)
    if not len(fresh) or len(learned) < 2:
        return table, fresh[:0]
    drawn = np.random.default_rng(seed).normal(learned.mean(0), learned.std(0), (len(fresh), table.shape[1]))
    out = table.copy()
    out[fresh] = drawn
    return out, fresh
