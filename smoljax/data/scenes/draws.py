"""Random draws that are the same on every NumPy: computed here from Philox's raw 64-bit stream."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_CHUNK = 128


class Draws:
    """A stream of draws that is a function of `key` alone.

    NumPy promises its bit generators' streams, not the methods of `Generator`; so only the former is used.
    """

    def __init__(self, *key: int):
        self._bits = np.random.Philox(np.random.SeedSequence(list(key)))
        self._buffer: list[int] = []

    def _next(self) -> int:
        if not self._buffer:
            self._buffer = self._bits.random_raw(_CHUNK).tolist()
        return self._buffer.pop()

    def unit(self) -> float:
        """A float in [0, 1)."""
        return (self._next() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """An int in [0, count)."""
        return self._next() % count

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, all alike."""
        return items[self._next() % len(items)]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of `items`, in proportion to `weights`."""
        mark = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """`items` in another order (Fisher–Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self._next() % (last + 1)
            result[last], result[other] = result[other], result[last]
        return result
