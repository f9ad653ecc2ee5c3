"""Causal tests: the image tokens are changed before the decoder reads them, and the answers tell what it used.

A change is a pure function (features [B, I, Q, D], key, shift [D]) → features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Change = Callable[[Float[Array, "B I Q D"], Array, Float[Array, "D"]], Float[Array, "B I Q D"]]


def none(features: Array, key: Array, shift: Array) -> Array:
    """As they are."""
    return features


def shuffle(features: Array, key: Array, shift: Array) -> Array:
    """Each tile's tokens in another order: what is where is lost, what there is stays."""
    keys = jax.random.split(key, features.shape[0] * features.shape[1])
    flat = features.reshape(-1, *features.shape[2:])
    return jax.vmap(jax.random.permutation)(keys, flat).reshape(features.shape)


def swap(features: Array, key: Array, shift: Array) -> Array:
    """Another row's picture: the answers of a model that looks are those of the wrong picture."""
    return jnp.roll(features, 1, axis=0)


def average(features: Array, key: Array, shift: Array) -> Array:
    """Each tile's tokens all equal to their mean: a bag without places or objects."""
    return jnp.broadcast_to(features.mean(axis=2, keepdims=True), features.shape)


def move(features: Array, key: Array, shift: Array) -> Array:
    """Every token moved by `shift`: with words' centroid − image tokens' centroid the gap between them is closed."""
    return features + shift.astype(features.dtype)


#: By name, as reports list them.
CHANGES: dict[str, Change] = {
    "none": none,
    "swap": swap,
    "shuffle": shuffle,
    "average": average,
    "move": move,
}
