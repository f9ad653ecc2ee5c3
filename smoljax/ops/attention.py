"""Scaled dot-product attention with shared key-value heads, and the masks that it takes."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import AttentionKind
from smoljax.ops.partition import active_partition, platform

#: Queries from which on the scores of all heads are too large to stay near a CPU's cores.
MANY_QUERIES = 64
#: Queries of a block that leaves out the keys behind it.
CAUSAL_BLOCK = 128


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


def attention_by_heads(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B #T S"] | None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """What `attention` mixes, one key-value head after the other, so that no more scores exist than a head's.

    On a CPU [B, N, T, S] scores are bound by memory and by the transposes that XLA puts around products with batch
    dimensions; a head's own are products of plain matrices and stay in the caches. The backward pass (reverse mode
    only) makes a head's scores again from their largest and the sum of the weights, which are kept (Dao et al. 2022),
    and with their keys first, so that one product of its five and not two reads a matrix across its rows.

    Args:
      q, k, v, mask: as for `attention`.
      causal: the mask is known to hide from query t every key behind key t. Blocks of queries then leave out the keys
        that none of them sees.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    G = N // K
    queries = (q * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B * K, G, T, H)
    keys, values = (x.transpose(0, 2, 1, 3).reshape(B * K, S, H) for x in (k, v))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (len(mask), T, S))
    mixed = _heads(causal, queries, keys, values, mask)
    return mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _heads(
    causal: bool,
    q: Float[Array, "X G T H"],
    k: Float[Array, "X S H"],
    v: Float[Array, "X S H"],
    mask: Bool[Array, "R T S"] | None,
) -> Float[Array, "X G T H"]:
    """Attention of X = B·K key-value heads and the queries that read them, scaled; a mask for all or for each row."""
    return _heads_forward(causal, q, k, v, mask)[0]


def _heads_forward(causal: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Any]:
    T, count = q.shape[2], len(k)
    starts = range(0, T, CAUSAL_BLOCK) if causal and mask is not None else (0,)

    def block(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, Array, Array]:
        scores = _scores(q.reshape(-1, q.shape[-1]), k)
        if seen is not None:
            scores = jnp.where(_for_each(seen, q), scores, jnp.finfo(jnp.float32).min)
        most = scores.max(axis=-1)
        weights = jnp.exp(scores - most[:, None])
        total = weights.sum(axis=-1)
        mixed = jnp.einsum("ts,sh->th", weights.astype(q.dtype), v, preferred_element_type=jnp.float32)
        mixed = (mixed / total[:, None]).astype(q.dtype)
        return mixed.reshape(q.shape), most.reshape(q.shape[:2]), total.reshape(q.shape[:2])

    def head(each: Any) -> tuple[Array, Array, Array]:
        number, q, k, v = each
        seen = _mask_of(mask, number, count)
        if len(starts) == 1:
            return block(q, k, v, seen)
        assert seen is not None
        ends = [min(start + CAUSAL_BLOCK, T) for start in starts]
        parts = [
            block(q[:, start:end], k[:end], v[:end], seen[start:end, :end])
            for start, end in zip(starts, ends, strict=True)
        ]
        mixed, most, total = (jnp.concatenate(kind, axis=1) for kind in zip(*parts, strict=True))
        return mixed, most, total

    mixed, most, total = jax.lax.map(head, (jnp.arange(len(k)), q, k, v))
    mixed, most, total = (checkpoint_name(x, "mixed") for x in (mixed, most, total))
    return mixed, (q, k, v, mask, mixed, most, total)


def _heads_backward(causal: bool, saved: Any, d_mixed: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, mixed, most, total = saved
    d_mixed = d_mixed.astype(jnp.float32) / total[..., None]
    inner, count = (d_mixed * mixed).sum(axis=-1), len(k)

    def head(each: Any) -> tuple[Array, Array, Array]:
        number, q, k, v, across, d_mixed, inner, most = each
        flat, d_mixed = q.reshape(-1, q.shape[-1]), d_mixed.reshape(-1, q.shape[-1]).astype(q.dtype)
        scores = _scores(k, flat)
        seen = _mask_of(mask, number, count)
        seen = None if seen is None else _for_each(seen, q).T
        if seen is not None:
            scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - most.reshape(-1))
        d_scores = (weights * (_scores(v, d_mixed) - inner.reshape(-1))).astype(q.dtype)
        if seen is not None:
            d_scores = jnp.where(seen, d_scores, 0)
        d_v = jnp.einsum("st,th->sh", weights.astype(q.dtype), d_mixed)
        d_k = jnp.einsum("st,th->sh", d_scores, flat)
        return jnp.einsum("hs,st->ht", across, d_scores), d_k, d_v

    across = k.swapaxes(1, 2)  # here and not in the loop: XLA reads it across otherwise
    each = (jnp.arange(len(k)), q, k, v, across, d_mixed, inner, most)
    d_q, d_k, d_v = jax.lax.map(head, each)
    return d_q.swapaxes(1, 2).reshape(q.shape), d_k, d_v, None


_heads.defvjp(_heads_forward, _heads_backward)


def _scores(a: Float[Array, "T H"], b: Float[Array, "S H"]) -> Float[Array, "T S"]:
    return jnp.einsum("th,sh->ts", a, b, preferred_element_type=jnp.float32)


def _mask_of(mask: Array | None, head: Array, heads: int) -> Bool[Array, "T S"] | None:
    """The mask of one of so many heads; one for all rows needs no look."""
    if mask is None:
        return None
    return mask[0] if len(mask) == 1 else mask[head // (heads // len(mask))]


def _for_each(seen: Bool[Array, "T S"], q: Float[Array, "G T H"]) -> Bool[Array, "X S"]:
    """The mask of the queries of all G heads that read one head's keys, X = G·T."""
    return jnp.broadcast_to(seen, (len(q), *seen.shape)).reshape(-1, seen.shape[-1])


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
