"""Sums over tokens, a chunk at a time, so that tokens × vocabulary never exists whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoljax.ops.partition import constrain, ways


def sum_over_tokens(function: Callable[..., Any], chunk: int, *arrays: jax.Array) -> Any:
    """Σ function(chunk of each array) over chunks of the leading axis, padded with zeros.

    Of n chunks the k-th takes rows k, k + n, …: where the leading axis is split over devices, each device then has
    its share of every chunk, and none computes another's.

    The function is recomputed in the backward pass (`jax.checkpoint`): one chunk's intermediates are alive at a
    time.

    Args:
      function: chunks [C, …] → a pytree of sums; rows of zeros must add nothing.
      chunk: C on each of the devices that share the tokens.
      *arrays: [N, …], equal N.
    """
    arrays = tuple(constrain(array, "tokens") for array in arrays)
    chunk *= ways("tokens")
    N = arrays[0].shape[0]
    if chunk >= N:
        return function(*arrays)
    pad = -N % chunk
    parts = [
        jnp.moveaxis(
            jnp.pad(array, ((0, pad), *((0, 0),) * (array.ndim - 1))).reshape(chunk, -1, *array.shape[1:]),
            1,
            0,
        )
        for array in arrays
    ]
    body = jax.checkpoint(function)
    first = jax.eval_shape(body, *(part[0] for part in parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

    def step(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        part = tuple(constrain(array, "tokens") for array in part)
        return jax.tree.map(jnp.add, total, body(*part)), None

    return jax.lax.scan(step, zero, tuple(parts))[0]
