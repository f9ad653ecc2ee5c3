"""Whether two representations of the same things are alike, beside what chance gives: CKA and mutual neighbours.

Both are inflated by few samples and wide features (Aristotelian view, 2602.14486), so each comes with a null: the same
score with the pairing shuffled.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smoljax.analysis.geometry import unit


@dataclass(frozen=True)
class Calibrated:
    """A score beside its null.

    Attributes:
      value: of the true pairing.
      null_mean, null_high: mean and 95th percentile over shuffled pairings.
      p: share of shuffled pairings at least as good, the true one counted in: at least 1 / (shuffles + 1).
    """

    value: float
    null_mean: float
    null_high: float
    p: float


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of x [n, D] and y [n, E], row by row one thing, by the unbiased HSIC (Nguyen et al. 2021, eq. 3).

    1 for one representation up to rotation and scale; about 0, above or below, for unrelated ones. n ≥ 4.
    """
    k, m = (_centred_gram(features) for features in (x, y))
    cross, own_k, own_m = _hsic(k, m), _hsic(k, k), _hsic(m, m)
    return float(cross / np.sqrt(max(own_k * own_m, 1e-300)))


def mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """The mean share of a thing's k nearest neighbours (cosine) in x that are among those in y (Huh et al. 2024)."""
    if not 0 < k < len(x):
        raise ValueError(f"k is {k}; it must be at least 1 and below the {len(x)} things")
    near_x, near_y = (_neighbours(features, k) for features in (x, y))
    return float((near_x & near_y).sum() / (k * len(x)))


def calibrated(
    score: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    *,
    shuffles: int = 100,
    seed: int = 0,
) -> Calibrated:
    """A score of (x, y) with its null: the rows of y in another order, `shuffles` times."""
    rng = np.random.default_rng(seed)
    value = score(x, y)
    null = np.array([score(x, y[rng.permutation(len(y))]) for _ in range(shuffles)])
    better = float((1 + (null >= value).sum()) / (shuffles + 1))
    return Calibrated(value, float(null.mean()), float(np.quantile(null, 0.95)), better)


def _centred_gram(x: np.ndarray) -> np.ndarray:
    """The Gram matrix without its diagonal, U-centred (Székely & Rizzo 2014): products of two are unbiased."""
    n = len(x)
    if n < 4:
        raise ValueError(f"{n} things are too few; the unbiased HSIC needs 4")
    x = x.astype(np.float64)
    x = x - x.mean(0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    rows = gram.sum(0) / (n - 2)
    gram = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    return float((k * m).sum() / (n * (n - 3)))


def _neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """[n, n] bool: the k nearest others of each row."""
    cosine = unit(x) @ unit(x).T
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argpartition(-cosine, k - 1, axis=-1)[:, :k]
    found = np.zeros(cosine.shape, bool)
    np.put_along_axis(found, nearest, True, axis=-1)
    return found
