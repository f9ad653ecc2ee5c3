"""Attention by a platform's own kernel, where the scores never exist whole.

TPU: jax's splash attention (Pallas; `jax.experimental.pallas.ops.tpu.splash_attention`). GPU: cuDNN through
`jax.nn.dot_product_attention`. On a CPU the plain products of `smoljax.ops.attention` are what there is.
"""

import functools
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smoljax.ops.partition import active_partition

Names = tuple[str | None, str | None, str | None]
LANES = 128
BLOCK = 512  # queries and keys of a tile; the best of 128, 256, 512 and 1024 in predicted time


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segments: Int[Array, "B S"] | None,
    *,
    causal: bool,
    interpret: bool = False,
    names: Names = ("batch", "sequence", "heads"),
) -> Float[Array, "B T N H"]:
    """softmax(q·kᵀ / sqrt(H))·v on a TPU; T = S.

    On a mesh (`smoljax.ops.partition`) rows, queries and heads are split over what their names stand for, with all keys
    and values of a row on every device of it.

    Args:
      q: queries.
      k, v: keys and values; query head n reads key-value head n // (N / K).
      segments: a query sees keys of its own number alone; None: all. Of padding, another number than of real tokens.
      causal: a query sees no key behind it.
      interpret: run the kernel's steps in plain jax, on any platform; slow.
      names: of rows, queries and heads.
    """
    B, T, _, H = q.shape
    partition = active_partition()
    split = partition.ways(names[1]) if partition is not None and names[1] else 1
    pad = -T % (LANES * split)  # whole blocks on every device
    if pad:  # further tokens of a segment of their own
        if segments is None:
            segments = jnp.zeros((B, T), jnp.int32)
        segments = jnp.pad(segments, ((0, 0), (0, pad)), constant_values=-1)
        q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    q, k, v = (x.swapaxes(1, 2) for x in (q * H**-0.5, k, v))
    mixed = _placed(q, k, v, segments, causal, interpret, names)
    return mixed.swapaxes(1, 2)[:, :T]


def _placed(q: Any, k: Any, v: Any, segments: Any, causal: bool, interpret: bool, names: Names) -> Any:
    """[B, N, T, H] each; runs the kernel on every device's own share."""
    (_, N, T, _), narrow = q.shape, q.shape[-1] % LANES != 0
    partition = active_partition()
    if partition is None or partition.mesh.size == 1:
        return _run(_kernel(N, T, narrow, causal, 1, interpret), q, k, v, segments, segments)
    rows, along, heads = names
    split = partition.ways(along) if along else 1
    # Key-value heads go with the query heads that read them.
    if heads is not None and k.shape[1] % partition.ways(heads):
        heads = None
    spec = partition.spec((rows, heads, along, None), q.shape)
    kernel = _kernel(N // (partition.ways(heads) if heads else 1), T, narrow, causal, split, interpret)
    mesh = partition.mesh
    queries, keys = spec, PartitionSpec(spec[0], spec[1], None, None)
    own, all_ = PartitionSpec(spec[0], spec[2]), PartitionSpec(spec[0], None)
    # The tables of which blocks to visit are split with the queries.
    visits = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, spec[2])))
    named = (None, None) if segments is None else (own, all_)
    return jax.shard_map(
        _run, mesh=mesh, in_specs=(visits, queries, keys, keys, *named), out_specs=queries, check_vma=False
    )(kernel, q, k, v, segments, segments)


def _run(kernel: Any, q: Any, k: Any, v: Any, own: Any, all_: Any) -> Any:
    if own is None:
        return jax.vmap(kernel)(q, k, v)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(own, all_))


@functools.lru_cache(maxsize=32)
def _kernel(N: int, T: int, narrow: bool, causal: bool, shards: int, interpret: bool) -> Any:
    """For N heads, narrower than the lanes or not, and T tokens, queries in `shards` parts."""
    mask = masks.CausalMask((T, T), shard_count=shards) if causal else masks.FullMask((T, T))
    block = math.gcd(T // shards, BLOCK)
    # Heads narrower than the lanes would be stored padded to them; tokens, in whole lanes already, are not.
    layout = splash.QKVLayout.SEQ_MINOR if narrow else splash.QKVLayout.HEAD_DIM_MINOR
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    with (
        jax.core.eval_context()
    ):  # its tables are constants that are kept, whatever is being traced (a scan, too)
        return splash.make_splash_mha(
            masks.MultiHeadMask([mask] * N),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=shards,
            interpret=interpret,
        )
