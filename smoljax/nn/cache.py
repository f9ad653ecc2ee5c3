"""The key-value cache: an explicit pytree that goes into a call and comes out of it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import ComputeConfig, TextConfig
from smoljax.ops.int8_attention import round_int8
from smoljax.sharing import ImageAttention


@flax.struct.dataclass
class Int8Slots:
    """Keys or values in int8 (`smoljax.ops.int8_attention`).

    Attributes:
      values: [B, S, K, H] int8, or [L, B, S, K, H].
      scale: [B, S, K] float32, or [L, B, S, K]: a number is its value times its slot's and head's scale.
    """

    values: Any
    scale: Any

    def numbers(self, dtype: Any) -> Array:
        """What is kept, [B, S, K, H] in `dtype`."""
        return (self.values * self.scale[..., None]).astype(dtype)


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens seen so far, in S slots a row.

    Attributes:
      k: one [B, S, K, H] a layer (a tuple) when layers are unrolled, [L, B, S, K, H] when scanned; rotated. With a
        cache in int8, `Int8Slots` in place of each array.
      v: the same for values.
      valid: [B, S] bool, True where a slot holds a real token.
      index: int32, the next slot to be written, [] for all rows together or [B] for each row alone. In a fresh cache a
        NumPy number, so that a program that makes its own knows it to be empty.
      cross: where image tokens are read by cross-attention, their (k, v) like `k` and `v`; else None.
      blocks: [B, S] int32, which picture's image token a slot holds, 0 for words; None for causal image tokens.
    """

    # Any, here and in other pytrees: JAX rebuilds them with placeholders that are no arrays.
    k: Any
    v: Any
    valid: Any
    index: Any
    cross: Any = None
    blocks: Any = None

    @property
    def num_slots(self) -> int:
        """S, how many tokens a row can hold."""
        return self.valid.shape[1]

    @property
    def known_empty(self) -> bool:
        """Whether nothing was written yet and this can be told while a program is made."""
        return isinstance(self.index, np.ndarray | np.generic) and not np.any(self.index)

    def per_layer(self) -> Any:
        """What each layer gets, (k, v) or with `cross` (k, v, k, v): in a tuple when unrolled, stacked when scanned."""
        kinds = (self.k, self.v, *(self.cross or ()))
        return tuple(zip(*kinds, strict=True)) if isinstance(self.k, tuple) else kinds


def init_cache(
    config: TextConfig,
    compute: ComputeConfig,
    batch: int,
    num_slots: int,
    image_attention: ImageAttention = "causal",
) -> KVCache:
    """An empty cache of `num_slots` tokens a row, kept as `compute.cache` says."""

    def slots(*layers: int) -> Any:
        shape = (*layers, batch, num_slots, config.num_kv_heads, config.head_dim)
        if compute.cache_kind == "int8":
            return Int8Slots(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
        return jnp.zeros(shape, compute.cache_kind)

    def empty() -> Any:
        if compute.scan_layers:
            return slots(config.num_layers)
        return tuple(slots() for _ in range(config.num_layers))

    return KVCache(
        k=empty(),
        v=empty(),
        valid=jnp.zeros((batch, num_slots), bool),
        index=np.zeros((), np.int32),
        cross=(empty(), empty()) if image_attention == "cross" else None,
        blocks=None if image_attention == "causal" else jnp.zeros((batch, num_slots), jnp.int32),
    )


def token_bytes(config: TextConfig, compute: ComputeConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    width = config.head_dim * jnp.dtype(compute.cache_kind).itemsize
    if compute.cache_kind == "int8":
        width += jnp.dtype(jnp.float32).itemsize
    return 2 * config.num_layers * config.num_kv_heads * width


def write(
    slots: Float[Array, "B S *X"] | Bool[Array, "B S"] | Int[Array, "B S *X"] | Int8Slots,
    new: Array,
    index: Array,
) -> Any:
    """Puts `new` [B, T, …] into `slots` [B, S, …] from slot `index` on ([] or [B]), rounded as the slots are."""
    if isinstance(slots, Int8Slots):
        values, scale = round_int8(new)
        return Int8Slots(write(slots.values, values, index), write(slots.scale, scale, index))
    new = new.astype(slots.dtype)
    if index.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots, new, index, axis=1)
    return jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))(
        slots, new, index
    )


def first_slots(slots: Any, count: int) -> Any:
    """The first `count` of `slots` [B, S, …]."""
    return jax.tree.map(lambda leaf: leaf[:, :count], slots)
