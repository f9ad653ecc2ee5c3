"""How far a figure may be off: percentile intervals of the bootstrap (Efron 1979), pictures being drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smoljax.errors import SmoljaxError

_AT_ONCE = 4_000_000  # numbers in one block of draws: 16 MB


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval.

    Attributes:
      value: over all samples.
      low, high: the 2.5 % and 97.5 % points of the resampled figures.
      n: samples (questions, captions, boxes, …).
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON: value, low, high, n."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def bootstrap(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    n: int = 2000,
    clusters: Sequence[Any] | np.ndarray | None = None,
) -> Interval:
    """The mean of `values` with its interval.

    Args:
      values: [m], one a sample.
      seed: of the draws; the same seed, the same interval.
      n: how many draws.
      clusters: [m], which picture a sample belongs to. Pictures are drawn, each with all its samples, since several
        questions about one picture are not independent. None: every sample is its own.

    Raises:
      SmoljaxError: there are no values.
    """
    table = np.asarray(values, np.float64)
    counts = np.stack([table, np.ones_like(table)], axis=-1)
    return bootstrap_ratio(counts, lambda sums: sums[..., 0] / sums[..., 1], len(table), seed, n, clusters)


def bootstrap_ratio(
    counts: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    samples: int,
    seed: int = 0,
    n: int = 2000,
    clusters: Sequence[Any] | np.ndarray | None = None,
) -> Interval:
    """A figure of the corpus's summed counts with its interval: BLEU, F1, perplexity, a mean.

    Args:
      counts: [m, K] float64, what each sample adds.
      figure: summed counts [..., K] → the figure [...].
      samples: the number to report as n.
      seed, n, clusters: as for `bootstrap`.

    Raises:
      SmoljaxError: there are no counts.
    """
    if len(counts) == 0:
        raise SmoljaxError("nothing to average: no sample of this kind")
    table = np.asarray(counts, np.float64)
    if clusters is not None:
        _, number = np.unique(np.asarray(clusters), return_inverse=True)
        grouped = np.zeros((int(number.max()) + 1, table.shape[1]))
        np.add.at(grouped, number, table)
        table = grouped
    size = len(table)
    rng = np.random.default_rng(seed)
    drawn: list[np.ndarray] = []
    while (done := sum(len(part) for part in drawn)) < n:
        rows = min(n - done, max(1, _AT_ONCE // size))
        picks = rng.integers(0, size, (rows, size), dtype=np.int32) + np.arange(rows)[:, None] * size
        times = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        drawn.append(np.asarray(figure(times.astype(np.float64) @ table)))
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
    return Interval(float(figure(table.sum(axis=0))), float(low), float(high), samples)
