"""Next-token loss on the tokens that are to be learned."""

import jax
import jax.numpy as jnp

from smoljax.training.objectives.chunked import sum_over_tokens


def shift(
    input_ids: jax.Array, loss_mask: jax.Array, positions: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Targets [B, T] and their mask: slot t predicts token t + 1, where that one is to be learned.

    In a row with branches the trunk's last token is followed by the first branch alone, so a branch's first
    token is never predicted from another branch: there the positions do not run on, and the mask is False.

    Args:
      input_ids: [B, T].
      loss_mask: [B, T], True on tokens to be learned.
      positions: [B, T]; None: they run on everywhere.
    """
    targets = jnp.roll(input_ids, -1, axis=1)
    mask = jnp.roll(loss_mask, -1, axis=1).at[:, -1].set(False)
    if positions is not None:
        mask &= jnp.roll(positions, -1, axis=1) == positions + 1
    return targets, mask


def next_token_sums(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    chunk: int = 1024,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Σ −log p(target) over masked tokens, and how many of them the best guess gets right.

    Args:
      hidden: [N, D] after the final norm.
      head: [V, D], the output table.
      targets: [N] int32.
      mask: [N] bool.
      chunk: tokens whose [chunk, V] scores exist at a time.
      z_loss: weight of log²Z added to each token's loss.

    Returns:
      Two float32 scalars.
    """

    def one(h: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.einsum("nd,vd->nv", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(scores, axis=-1)
        picked = jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]
        loss = log_z - picked + z_loss * jnp.square(log_z)
        right = picked >= scores.max(axis=-1)
        return jnp.sum(loss * weight), jnp.sum(right * weight)

    return sum_over_tokens(one, chunk, hidden, targets, mask.astype(jnp.float32))
