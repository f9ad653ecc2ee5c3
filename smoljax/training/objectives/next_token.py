"""Next-token loss on the tokens that are to be learned."""

import jax
import jax.numpy as jnp

from smoljax.ops.partition import constrain
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


def balanced_weights(
    mask: jax.Array, segment_ids: jax.Array, branch_ids: jax.Array | None, balance: float
) -> jax.Array:
    """Weight n^−balance of every learned token, n being how many its conversation has.

    A conversation is a run of one segment and branch. `NextToken.balance` says what for.

    Args:
      mask: [B, T] bool, of `shift`.
      segment_ids, branch_ids: [B, T] int32; no branches where the latter is None.
      balance: 0 weighs all learned tokens 1.

    Returns:
      [B, T] float32, 0 where the mask is False.
    """
    learned = mask.astype(jnp.float32)
    if not balance:
        return learned

    def change(ids: jax.Array) -> jax.Array:
        return jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))

    changes = change(segment_ids) if branch_ids is None else change(segment_ids) | change(branch_ids)
    talk = jnp.cumsum(changes, axis=1)
    number = jax.vmap(lambda one, ids: jax.ops.segment_sum(one, ids, one.size)[ids])(learned, talk)
    return learned * jnp.maximum(number, 1.0) ** -balance


def next_token_sums(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int = 1024,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Σ −weight·log p(target), and how many tokens of weight above 0 the best guess gets right.

    Args:
      hidden: [N, D] after the final norm.
      head: [V, D], the output table.
      targets: [N] int32.
      weights: [N] bool or float32, 0 on tokens that are not learned.
      chunk: tokens whose [chunk, V] scores exist at a time on a device.
      z_loss: weight of log²Z added to each token's loss.

    Returns:
      Two float32 scalars.
    """

    def one(h: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.einsum("nd,vd->nv", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        scores = constrain(scores, "tokens", "vocab")
        log_z = jax.nn.logsumexp(scores, axis=-1)
        picked = jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]
        loss = log_z - picked + z_loss * jnp.square(log_z)
        right = picked >= scores.max(axis=-1)
        return jnp.sum(loss * weight), jnp.sum(right & (weight > 0)).astype(jnp.float32)

    return sum_over_tokens(one, chunk, hidden, targets, weights.astype(jnp.float32))
