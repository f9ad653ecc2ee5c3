"""Intervals of differences between runs: over seeds, and over pictures."""

import numpy as np

from smoljax.evaluation.metrics.bootstrap import bootstrap_ratio


def student_interval(differences: np.ndarray) -> list[float] | None:
    """The 95 % interval of the mean by Student's t over n differences; None for fewer than two."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    half = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / n**0.5
    mean = float(np.mean(differences))
    return [mean - half, mean + half]


def paired_ratio(one: np.ndarray, other: np.ndarray, draws: int = 2000) -> list[float]:
    """The 95 % interval of the mean over seeds of other's share − one's share, pictures being drawn.

    Args:
      one, other: [seeds, pictures, 2], right and asked; the same seeds and pictures in the same order.
      draws: of the bootstrap.
    """
    seeds, pictures = one.shape[:2]
    counts = np.stack([one, other], axis=2).transpose(1, 0, 2, 3)  # pictures, seeds, 2, right and asked

    def gain(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(*sums.shape[:-1], seeds, 2, 2)
        share = table[..., 0] / table[..., 1]
        return (share[..., 1] - share[..., 0]).mean(axis=-1)

    drawn = bootstrap_ratio(counts.reshape(pictures, -1), gain, pictures, n=draws)
    return [drawn.low, drawn.high]
