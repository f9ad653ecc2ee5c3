"""Scaled dot-product attention with shared key-value heads, and the masks that it takes."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import AttentionKind
from smoljax.ops.attention_by_heads import attention_by_heads
from smoljax.ops.partition import active_partition, platform

#: Queries from which on the scores of all heads are too large to stay near a CPU's cores.
MANY_QUERIES = 64


class Segments(NamedTuple):
    """A mask told in numbers, as kernels take it: a query sees the keys of its own number, and none behind it.

    Attributes:
      ids: [B, T] int32, another number on padding than on real tokens.
    """

    ids: Any


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Any,
    kind: AttentionKind = "auto",
    names: tuple[str | None, str | None, str | None] = ("batch", "sequence", "heads"),
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """What `attention` mixes, by the platform's own kernel where there is one (`kernel_for`).

    Args:
      q, k, v: as there.
      mask: as there, or `Segments`, which only the TPU's kernel takes.
      kind: see `smoljax.config.ComputeConfig`.
      names: of the dimensions of rows, queries and heads, on a mesh (`smoljax.ops.partition`).
      causal: see `attention_by_heads`.
    """
    found = kernel_for(kind, q.dtype)
    if found == "splash" and (mask is None or isinstance(mask, Segments)):
        from smoljax.ops import flash  # Pallas takes a while to import

        segments = None if mask is None else mask.ids
        return flash.splash_attention(q, k, v, segments, causal=mask is not None, names=names)
    if found == "cudnn" and _cudnn_takes(q, k, mask):
        wide = (
            None
            if mask is None
            else jnp.broadcast_to(mask[:, None], (*mask.shape[:1], 1, q.shape[1], k.shape[1]))
        )
        return jax.nn.dot_product_attention(q, k, v, mask=wide, implementation="cudnn")
    if found == "heads" and q.shape[1] >= MANY_QUERIES:
        return attention_by_heads(q, k, v, mask, causal)
    return attention(q, k, v, mask)[0]


def _cudnn_takes(q: Any, k: Any, mask: Any) -> bool:
    """Whole eights of numbers a head, at most 128; with a mask even numbers of tokens."""
    width, even = q.shape[-1], q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return width % 8 == 0 and width <= 128 and (mask is None or even)


def kernel_for(kind: AttentionKind, dtype: Any) -> str | None:
    """ "splash" on a TPU, "cudnn" on a GPU in half precision, "heads" on one CPU, None where attention is plain."""
    if kind == "plain":
        return None
    if platform() == "cpu":
        partition = active_partition()
        return "heads" if partition is None or partition.mesh.size == 1 else None
    if platform() == "tpu":
        return "splash"
    if platform() not in ("gpu", "cuda") or dtype not in (jnp.bfloat16, jnp.float16):
        return None
    # Ampere and later; other makers' cards name no such version.
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))
    return "cudnn" if re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= 8 else None


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B #T S"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"]]:
    """softmax(q·kᵀ / sqrt(H))·v and the attention weights.

    N = K·G query heads share K key-value heads (GQA, Ainslie et al. 2023; G = 1 is plain multi-head), head n
    reading key-value head n // G, as `repeat_kv` does in the reference. Scores and softmax are float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: True where a query may look; None lets every query see every key. A query that may see nothing
        (padding) gets the mean of all values, a finite number that nobody reads.

    Returns:
      The mixed values and the weights, both in the dtype of `q`.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * H**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return mixed.reshape(B, T, N, H), weights.reshape(B, N, T, -1)


def causal_mask(
    valid: Bool[Array, "B S"],
    query_slots: Int[Array, "#B T"],
    segment_ids: Int[Array, "B S"] | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    branch_ids: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Which keys each query may see: real ones, at or before its own slot, of its own segment.

    Args:
      valid: False for padding keys.
      query_slots: the slot of each query among the S key slots.
      segment_ids: sample number of each key in a packed row; None if rows are not packed.
      query_segments: the same for the queries; defaults to `segment_ids` where T == S.
      branch_ids: which of several continuations of one beginning a token belongs to (T == S). Branch 0 is the
        common trunk, which every branch sees; another branch is seen by itself alone. So several conversations
        about one picture cost that picture's tokens once.
    """
    slots = jnp.arange(valid.shape[1])
    mask = (slots[None, None, :] <= query_slots[:, :, None]) & valid[:, None, :]
    if segment_ids is not None:
        queries = segment_ids if query_segments is None else query_segments
        mask &= queries[:, :, None] == segment_ids[:, None, :]
    if branch_ids is not None:
        keys = branch_ids[:, None, :]
        mask &= (keys == 0) | (keys == branch_ids[:, :, None])
    return mask


def positions_from_mask(attention_mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of every token in its row, counting real tokens only; padding gets 0."""
    return jnp.maximum(jnp.cumsum(attention_mask.astype(jnp.int32), axis=-1) - 1, 0)
