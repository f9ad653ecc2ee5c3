"""Scaled dot-product attention a head at a time, forward and backward: the way that suits a CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

#: Queries of a block that leaves out the keys behind it.
CAUSAL_BLOCK = 128


def attention_by_heads(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B #T S"] | None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """What `smoljax.ops.attention.attention` mixes, one key-value head after the other.

    No more scores exist than a head's. On a CPU [B, N, T, S] scores are bound by memory and by the transposes that
    XLA puts around products with batch dimensions; a head's own are products of plain matrices and stay in the
    caches. The backward pass (reverse mode only) makes a head's scores again from their largest and the sum of the
    weights, which are kept (Dao et al. 2022), and with their keys first, so that one product of its five and not
    two reads a matrix across its rows.

    Args:
      q, k, v, mask: as there.
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
    mixed: Any = _heads(causal, queries, keys, values, mask)
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
    """What is mixed, and for the backward pass each query's largest score and sum of weights, [X, G, T] both."""
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
    """The gradients of queries, keys and values; keys that no query sees are looked at all the same."""
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
