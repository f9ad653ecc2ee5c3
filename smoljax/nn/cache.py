"""The key-value cache: an explicit pytree that goes into a call and comes out of it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from smoljax.config import ComputeConfig, TextConfig


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens seen so far, in S slots a row.

    Attributes:
      k: one [B, S, K, H] a layer (a tuple) when layers are unrolled, [L, B, S, K, H] when scanned; rotated.
      v: the same for values.
      valid: [B, S] bool, True where a slot holds a real token.
      index: int32, the next slot to be written, [] for all rows together or [B] for each row alone.
    """

    # Any, here and in other pytrees: JAX rebuilds them with placeholders that are no arrays.
    k: Any
    v: Any
    valid: Any
    index: Any

    @property
    def num_slots(self) -> int:
        """S, how many tokens a row can hold."""
        return self.valid.shape[1]

    def per_layer(self) -> Any:
        """What each layer gets: (k, v) pairs, in a tuple when unrolled, stacked when scanned."""
        return tuple(zip(self.k, self.v, strict=True)) if isinstance(self.k, tuple) else (self.k, self.v)


def init_cache(config: TextConfig, compute: ComputeConfig, batch: int, num_slots: int) -> KVCache:
    """An empty cache of `num_slots` tokens a row, in the compute dtype."""
    shape = (batch, num_slots, config.num_kv_heads, config.head_dim)
    if compute.scan_layers:
        k: Any = jnp.zeros((config.num_layers, *shape), compute.dtype)
        v: Any = jnp.zeros((config.num_layers, *shape), compute.dtype)
    else:
        k = tuple(jnp.zeros(shape, compute.dtype) for _ in range(config.num_layers))
        v = tuple(jnp.zeros(shape, compute.dtype) for _ in range(config.num_layers))
    return KVCache(k=k, v=v, valid=jnp.zeros((batch, num_slots), bool), index=jnp.zeros((), jnp.int32))


def write(slots: Float[Array, "B S *X"] | Bool[Array, "B S"], new: Array, index: Array) -> Array:
    """Puts `new` [B, T, …] into `slots` [B, S, …] from slot `index` on ([] or [B])."""
    new = new.astype(slots.dtype)
    if index.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots, new, index, axis=1)
    return jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))(
        slots, new, index
    )
