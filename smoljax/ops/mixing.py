"""Vectors against the rows of a table: lengths matched, rows mixed, the nearest row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Vectors of length one, float32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


def match_norm(x: Float[Array, "*B D"], rows: Float[Array, "V D"]) -> Float[Array, "*B D"]:
    """Each vector at the root-mean-square length of the rows, which get no gradient by it."""
    length = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=-1)))
    return (unit(x) * jax.lax.stop_gradient(length)).astype(x.dtype)


def mix_rows(
    scores: Float[Array, "*B K"], rows: Float[Array, "K D"], top_k: int = 0
) -> tuple[Float[Array, "*B D"], Float[Array, "*B K"]]:
    """softmax(scores)·rows and the weights, float32; with `top_k` only the k best rows have weight."""
    if top_k:
        least = jax.lax.top_k(scores, min(top_k, scores.shape[-1]))[0][..., -1:]
        scores = jnp.where(scores >= least, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    return weights @ rows.astype(jnp.float32), weights


def nearest_rows(
    x: Float[Array, "*B D"], rows: Float[Array, "V D"], *, cosine: bool = True
) -> Int[Array, "*B"]:
    """The index of the row at the smallest angle, or at the smallest distance."""
    if cosine:
        return jnp.argmax(jnp.einsum("...d,vd->...v", unit(x), unit(rows)), axis=-1)
    x, rows = x.astype(jnp.float32), rows.astype(jnp.float32)
    products = jnp.einsum("...d,vd->...v", x, rows)
    return jnp.argmin(jnp.sum(jnp.square(rows), axis=-1) - 2 * products, axis=-1)
