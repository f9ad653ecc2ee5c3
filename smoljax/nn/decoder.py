"""The SmolLM2 decoder: embeddings in, hidden states out; words and image tokens alike."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import ComputeConfig, TextConfig
from smoljax.nn.cache import KVCache, write
from smoljax.nn.linear import Linear, RMSNorm
from smoljax.nn.stacking import apply_layers, captured
from smoljax.ops.attention import attention, causal_mask, positions_from_mask
from smoljax.ops.rope import apply_rope, rope_tables


class DecoderAttention(nn.Module):
    """Causal attention with RoPE and grouped key-value heads (reference: `LlamaAttention`)."""

    config: TextConfig
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: Any, shared: Any
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B N T S"], Any]:
        """Returns the output, the attention weights and this layer's (k, v) slots, or None without cache."""
        cfg, (mask, cos, sin, index) = self.config, shared
        B, T, D = x.shape
        N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        q = apply_rope(Linear(N * H, False, self.dtype, name="q")(x).reshape(B, T, N, H), cos, sin)
        k = apply_rope(Linear(K * H, False, self.dtype, name="k")(x).reshape(B, T, K, H), cos, sin)
        v = Linear(K * H, False, self.dtype, name="v")(x).reshape(B, T, K, H)
        if own is not None:
            k, v = own = write(own[0], k, index), write(own[1], v, index)
        mixed, weights = attention(q, k.astype(x.dtype), v.astype(x.dtype), mask)
        return Linear(D, False, self.dtype, name="out")(mixed.reshape(B, T, N * H)), weights, own


class DecoderMLP(nn.Module):
    """down(silu(gate(x))·up(x)), SwiGLU (reference: `LlamaMLP`)."""

    config: TextConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the three products."""
        gate = Linear(self.config.intermediate_size, False, self.dtype, name="gate")(x)
        up = Linear(self.config.intermediate_size, False, self.dtype, name="up")(x)
        return Linear(x.shape[-1], False, self.dtype, name="down")(jax.nn.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm block (reference: `LlamaDecoderLayer`)."""

    config: TextConfig
    dtype: str
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], own: Any, shared: Any) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the activations, and a pair of this layer's cache slots and captured intermediates."""
        eps = self.config.rms_norm_eps
        mixed, weights, own = DecoderAttention(self.config, self.dtype, name="attention")(
            RMSNorm(eps, name="norm1")(x), own, shared
        )
        x = x + mixed
        x = x + DecoderMLP(self.config, self.dtype, name="mlp")(RMSNorm(eps, name="norm2")(x))
        found = {"hidden_states": x, "attention": weights}
        return x, (own, {key: found[key] for key in self.capture})


class Decoder(nn.Module):
    """SmolLM2 without word table and head (reference: `LlamaModel` called with `inputs_embeds`).

    Attributes:
      config: sizes, RoPE base, epsilon. `dataclasses.replace(config, num_layers=n)` with
        `smoljax.nn.stacking.truncate_layers` takes the first n layers of a backbone.
      compute: dtype, scan, remat.
      capture: any of "hidden_states" [L, B, T, D] (after each layer) and "attention" [L, B, N, T, S].
    """

    config: TextConfig
    compute: ComputeConfig = ComputeConfig()
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        branch_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None, dict[str, Array]]:
        """Runs the layers.

        Args:
          x: embeddings of words and image tokens.
          attention_mask: False on padding, on either side; None where every token is real.
          positions: RoPE positions; by default real tokens are counted, from the cache's tokens on.
          segment_ids: sample number of every token of a packed row; attention stays inside a sample. Not
            together with a cache.
          cache: keys and values so far; the new tokens are written behind them. Where they do not fit, the
            result is NaN, so that an overflow cannot pass unnoticed under jit.
          branch_ids: several continuations of one beginning in one sequence
            (`smoljax.ops.attention.causal_mask`); give `positions` too. Not together with a cache.

        Returns:
          Hidden states after the final norm, the updated cache (None without one) and the captured
          intermediates.
        """
        B, T, _ = x.shape
        if attention_mask is None:
            attention_mask = jnp.ones((B, T), bool)
        counted = positions_from_mask(attention_mask)
        if cache is None:
            index, own, seen = None, None, None
            mask = causal_mask(attention_mask, jnp.arange(T)[None], segment_ids, branch_ids=branch_ids)
        else:
            if segment_ids is not None or branch_ids is not None:
                raise ValueError("a cache excludes segment_ids and branch_ids: packed rows are for training")
            if cache.num_slots < T:
                raise ValueError(f"{T} tokens do not fit a cache of {cache.num_slots} slots")
            index, own = cache.index, cache.per_layer()
            counted = counted + cache.valid.sum(axis=-1, keepdims=True, dtype=jnp.int32)
            seen = write(cache.valid, attention_mask, index)
            mask = causal_mask(seen, jnp.reshape(index, (-1, 1)) + jnp.arange(T)[None])
        cos, sin = rope_tables(
            counted if positions is None else positions, self.config.head_dim, self.config.rope_theta
        )
        fields = {"config": self.config, "dtype": self.compute.dtype, "capture": self.capture}
        shared = (mask, cos, sin, index)
        x, outs = apply_layers(
            DecoderLayer,
            fields,
            self.config.num_layers,
            self.compute,
            x.astype(self.compute.dtype),
            own,
            shared,
        )
        slots, found = outs if self.compute.scan_layers else (tuple(o[0] for o in outs), [o[1] for o in outs])
        if cache is not None:
            assert seen is not None
            k, v = slots if self.compute.scan_layers else zip(*slots, strict=True)
            fits = jnp.reshape(cache.index + T <= cache.num_slots, (-1, 1, 1))
            x = jnp.where(fits, x, jnp.nan)
            cache = KVCache(k=k, v=v, valid=seen, index=cache.index + T)
        return RMSNorm(self.config.rms_norm_eps, name="final_norm")(x), cache, captured(found)
