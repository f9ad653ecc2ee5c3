"""Counts of right, stated and true facts, from which precision, recall and F1 follow."""

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np


def fact_counts(stated: Iterable[Hashable], true: Iterable[Hashable]) -> np.ndarray:
    """[3] float64: facts both stated and true, facts stated, facts true; repeats count as often as they stand."""
    first, second = Counter(stated), Counter(true)
    return np.array([(first & second).total(), first.total(), second.total()], np.float64)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 (micro) from summed counts [..., 3] → [...]; NaN where there is neither a stated nor a true fact."""
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.full(np.shape(total), np.nan), where=total > 0)
