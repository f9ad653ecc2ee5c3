"""Retrieval: which place the right text takes for a picture, and the right picture for a text."""

from collections.abc import Sequence

import numpy as np


def ranks(similarity: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """For each row of scores, the place (from 0) of its right column.

    Row i's right columns are column i and, with `names`, every column whose name is row i's: two pictures with the
    same caption are each as right as the other. Ties are pessimistic: a wrong column that scores as high as the best
    right one stands before it, and a score that is not a number stands last.

    Args:
      similarity: [n, n], higher is nearer; transposed for the other direction.
      names: [n], what makes columns interchangeable, such as their captions.

    Returns:
      [n] int64.
    """
    scores = np.where(np.isfinite(similarity), similarity, -np.inf)
    right = np.eye(len(scores), dtype=bool)
    if names is not None:
        _, number = np.unique(np.asarray(names), return_inverse=True)
        right = number[:, None] == number[None]
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    return ((scores >= best) & ~right).sum(axis=1)


def recall_at(places: np.ndarray, k: int) -> np.ndarray:
    """[n] float64: 1 where the right one is among the first k."""
    return (places < k).astype(np.float64)
