"""Where two clouds of vectors lie: centroids, lengths, directions, dimensions, distributions, separability."""

from collections.abc import Sequence

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def centroid_gap(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The distance between the centroids of x [n, D] and y [m, D] (Liang et al. 2022, Mind the Gap).

    Returns:
      `raw`; `relative`, over the root-mean-square length of y; `unit`, between the centroids of vectors at length one.
    """
    raw = float(np.linalg.norm(x.mean(0) - y.mean(0)))
    length = float(np.sqrt(np.square(y).sum(-1).mean()))
    return {
        "raw": raw,
        "relative": raw / max(length, 1e-12),
        "unit": float(np.linalg.norm(unit(x).mean(0) - unit(y).mean(0))),
    }


def norms(x: np.ndarray, quantiles: Sequence[float] = QUANTILES) -> list[float]:
    """Quantiles of the vectors' lengths."""
    return [float(value) for value in np.quantile(np.linalg.norm(x, axis=-1), quantiles)]


def anisotropy(x: np.ndarray) -> float:
    """The mean cosine of two different vectors of x [n, D] (Ethayarajh 2019): 0 in all directions alike, 1 in one."""
    n = len(x)
    total = np.square(unit(x).sum(0)).sum()
    return float((total - n) / (n * (n - 1)))


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the covariance's eigenvalues as shares (Roy & Vetterli 2007): D of a ball, 1 of a line."""
    values = np.square(np.linalg.svd(x - x.mean(0), compute_uv=False))
    share = values / max(values.sum(), 1e-300)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The squared 2-Wasserstein distance of Gaussians with the clouds' means and covariances (Dowson & Landau 1982).

    ‖μx − μy‖² + tr(Σx + Σy − 2(Σx^½ Σy Σx^½)^½); the measure behind FID, and behind MIR by layer (2410.07167).
    """
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    gap = np.square(x.mean(0) - y.mean(0)).sum()
    return float(gap + np.trace(a) + np.trace(b) - 2 * cross)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """√(2·E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖) (Székely & Rizzo 2013), unbiased: 0 for one distribution, at least in mean.

    Negative estimates of the square, which chance brings where the distributions are equal, give minus the root.
    """
    n, m = len(x), len(y)
    within = distances(x, x).sum() / (n * (n - 1)) + distances(y, y).sum() / (m * (m - 1))
    square = 2 * distances(x, y).mean() - within
    return float(np.sign(square) * np.sqrt(abs(square)))


def separability(
    x: np.ndarray,
    y: np.ndarray,
    groups_x: np.ndarray | None = None,
    groups_y: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """How well a linear probe tells x from y on vectors it was not fitted to: the area under its ROC curve, 0.5 to 1.

    Fisher's discriminant with a ridge of a hundredth of the mean variance, fitted on a random half of each.

    Args:
      x, y: [n, D] and [m, D].
      groups_x, groups_y: [n] and [m]; vectors of one group (one picture, one word) are never on both sides. None: every
        vector is its own.
      seed: of the halves.
    """
    rng = np.random.default_rng(seed)
    fit_x, test_x = _halves(x, groups_x, rng)
    fit_y, test_y = _halves(y, groups_y, rng)
    within = np.cov(fit_x, rowvar=False) + np.cov(fit_y, rowvar=False)
    within += np.eye(x.shape[1]) * max(0.01 * np.trace(within) / x.shape[1], 1e-12)
    axis = np.linalg.solve(within, fit_x.mean(0) - fit_y.mean(0))
    return area_under_roc(test_x @ axis, test_y @ axis)


def area_under_roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs whose positive score is the larger one, ties counting half."""
    merged = np.concatenate([positive, negative])
    _, place, count = np.unique(merged, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # mean rank of equal scores, from 1
    n, m = len(positive), len(negative)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors at length one; a zero vector stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, m] Euclidean distances."""
    square = np.square(x).sum(-1)[:, None] + np.square(y).sum(-1) - 2 * x @ y.T
    if x is y:
        np.fill_diagonal(square, 0)
    return np.sqrt(np.maximum(square, 0))


def _halves(
    x: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    groups = np.arange(len(x)) if groups is None else groups
    names = np.unique(groups)
    fitted = np.isin(groups, rng.permutation(names)[: len(names) // 2])
    return x[fitted], x[~fitted]
