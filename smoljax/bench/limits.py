"""What the machine can do at most, measured by the same library: a large matrix product, and reading memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def matrix_gflops(size: int = 3072, repeats: int = 3) -> float:
    """GFLOP/s of a float32 product of two square matrices."""
    a = jnp.full((size, size), 0.5)
    seconds = median_seconds(jax.jit(jnp.dot), (a, a), repeats)
    return 2 * size**3 / seconds / 1e9


def memory_gb_s(rows: int = 16384, columns: int = 8192, repeats: int = 5) -> float:
    """GB/s of a float32 matrix-vector product that reads 512 MB."""
    matrix, vector = jnp.full((rows, columns), 0.5), jnp.full((columns,), 0.5)
    seconds = median_seconds(jax.jit(jnp.dot), (matrix, vector), repeats)
    return 4 * rows * columns / seconds / 1e9


def median_seconds(function: Callable[..., Any], args: tuple[Any, ...], repeats: int) -> float:
    """The median of so many calls, after one that compiles."""
    jax.block_until_ready(function(*args))
    seconds: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
