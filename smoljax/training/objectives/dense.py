"""Dense supervision of the patch encoder: what does each patch show?"""

import jax
import jax.numpy as jnp


def dense_sums(
    patches: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array, object_weight: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted cross entropy of a linear classifier on every patch.

    Args:
      patches: [..., P, E], the encoder's output.
      kernel, bias: [E, C], [C].
      labels: [..., P] int32 below C; 0 is "nothing here", −1 is unknown and does not count.
      object_weight: weight of patches whose label is not 0.

    Returns:
      Σ weight·loss, and on patches that show something: right ones, and their number.
    """
    scores = (patches @ kernel.astype(patches.dtype)).astype(jnp.float32) + bias
    shows = labels > 0
    picked = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(scores, axis=-1) - picked
    right = shows & (picked >= scores.max(axis=-1))
    return jnp.sum(patch_weights(labels, object_weight) * loss), jnp.sum(right), jnp.sum(shows)


def patch_weights(labels: jax.Array, object_weight: float) -> jax.Array:
    """[..., P] float32: `object_weight` where something is shown, 1 where nothing is, 0 where that is unknown."""
    return jnp.where(labels > 0, object_weight, jnp.where(labels == 0, 1.0, 0.0))
