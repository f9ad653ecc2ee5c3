"""Contrastive image–text losses in the shared space."""

import jax
import jax.numpy as jnp

from smoljax.ops.mixing import unit


def sigmoid_loss(
    image: jax.Array, text: jax.Array, valid: jax.Array, log_scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Every image–text combination is a yes/no question (SigLIP, Zhai et al. 2023, eq. 1), summed.

    Args:
      image, text: [M, D], pairs in the same row; any length.
      valid: [M] bool, False on padding.
      log_scale, bias: learned scalars.

    Returns:
      Σ over valid pairs; divide by their number.
    """
    logits = jnp.exp(log_scale) * unit(image) @ unit(text).T + bias
    sign = 2 * jnp.eye(len(valid)) - 1
    both = valid[:, None] & valid[None, :]
    return -jnp.sum(jnp.where(both, jax.nn.log_sigmoid(sign * logits), 0.0))


def infonce_loss(image: jax.Array, text: jax.Array, valid: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Softmax over the batch in both directions (CLIP, Radford et al. 2021, fig. 3), summed over pairs.

    Arguments as for `sigmoid_loss`.
    """
    logits = jnp.exp(log_scale) * unit(image) @ unit(text).T
    logits = jnp.where(valid[None, :], logits, -1e9)
    rows = jax.nn.logsumexp(logits, axis=1)
    logits_t = jnp.where(valid[:, None], logits, -1e9)
    columns = jax.nn.logsumexp(logits_t, axis=0)
    diagonal = jnp.diagonal(logits)
    return jnp.sum(jnp.where(valid, 0.5 * (rows + columns) - diagonal, 0.0))


def gather(hidden: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states [B·M, D] at the token indices [B, M], and which are real (an index of -1 is none)."""
    picked = jnp.take_along_axis(hidden, jnp.maximum(index, 0)[..., None], axis=1)
    return picked.reshape(-1, hidden.shape[-1]), (index >= 0).reshape(-1)
