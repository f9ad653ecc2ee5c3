"""Dense supervision of the patch encoder: what does each patch show?"""

import jax
import jax.numpy as jnp


def dense_sums(
    patches: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array, object_weight: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weighted cross entropy of a linear classifier on every patch.

    Args:
      patches: [..., P, E], the encoder's output.
      kernel, bias: [E, C], [C].
      labels: [..., P] int32 in [0, C); 0 is "nothing here".
      object_weight: weight of patches whose label is not 0.

    Returns:
      Σ weight·loss, Σ weight, and on patches that show something: right ones, and their number.
    """
    scores = (patches @ kernel.astype(patches.dtype)).astype(jnp.float32) + bias
    shows = labels > 0
    weight = jnp.where(shows, object_weight, 1.0)
    picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(scores, axis=-1) - picked
    right = shows & (picked >= scores.max(axis=-1))
    return jnp.sum(weight * loss), jnp.sum(weight), jnp.sum(right), jnp.sum(shows)
