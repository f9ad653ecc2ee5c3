"""The SmolLM2 decoder: embeddings in, hidden states out; words and image tokens alike."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import AttentionKind, ComputeConfig, TextConfig
from smoljax.nn.cache import Int8Slots, KVCache, first_slots, write
from smoljax.nn.linear import Linear, RMSNorm
from smoljax.nn.stacking import apply_layers, captured
from smoljax.ops.attention import (
    Segments,
    attend,
    attention,
    causal_mask,
    kernel_for,
    positions_from_mask,
)
from smoljax.ops.image_tokens import image_blocks
from smoljax.ops.int8_attention import FEW_QUERIES, int8_attention
from smoljax.ops.partition import constrain
from smoljax.ops.rope import apply_rope, rope_tables
from smoljax.sharing import ImageAttention


class DecoderAttention(nn.Module):
    """Causal attention with RoPE and grouped key-value heads (reference: `LlamaAttention`)."""

    config: TextConfig
    dtype: str
    kind: AttentionKind = "auto"
    keep: bool = False
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: Any, shared: Any
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B N T S"] | None, Any]:
        """Returns the output, the attention weights if they are to be kept, and this layer's (k, v) slots, or None.

        As many of the first slots are read as the mask is wide; `causal` says that it lets no query look ahead.
        """
        cfg, (mask, cos, sin, index, _) = self.config, shared
        B, T, D = x.shape
        N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        q = apply_rope(Linear(N * H, False, self.dtype, name="q")(x).reshape(B, T, N, H), cos, sin)
        k = apply_rope(Linear(K * H, False, self.dtype, name="k")(x).reshape(B, T, K, H), cos, sin)
        v = Linear(K * H, False, self.dtype, name="v")(x).reshape(B, T, K, H)
        q = checkpoint_name(constrain(q, "batch", "sequence", "heads", None), "q")
        k = checkpoint_name(constrain(k, "batch", None, "kv_heads", None), "k")
        v = checkpoint_name(constrain(v, "batch", None, "kv_heads", None), "v")
        if own is not None:
            own = write(own[0], k, index), write(own[1], v, index)
            k, v = (first_slots(slots, mask.shape[-1]) for slots in own)
        mixed, weights = _mix(q, k, v, mask, self.kind, self.keep, self.causal)
        out = Linear(D, False, self.dtype, name="out")(mixed.reshape(B, T, N * H))
        return checkpoint_name(out, "attention_out"), weights, own


def _mix(
    q: Array, k: Any, v: Any, mask: Any, kind: AttentionKind, keep: bool = False, causal: bool = False
) -> tuple[Array, Array | None]:
    """What attention mixes of keys and values as they come or as a cache keeps them; the weights with `keep`."""
    if isinstance(k, Int8Slots):
        if q.shape[1] <= FEW_QUERIES:
            mixed, weights = int8_attention(q, k.values, k.scale, v.values, v.scale, mask)
            return mixed, weights if keep else None
        k, v = k.numbers(q.dtype), v.numbers(q.dtype)
    elif k.dtype != q.dtype:
        # Else the conversion takes the writing of new slots into itself, and the cache is copied to be written again.
        k, v = jax.lax.optimization_barrier((k, v))
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    return attention(q, k, v, mask) if keep else (attend(q, k, v, mask, kind, causal=causal), None)


class CrossAttention(nn.Module):
    """Words read image tokens that stand outside their sequence; without positions of its own."""

    config: TextConfig
    dtype: str
    kind: AttentionKind = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: Any, index: Array | None, outside: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output, zero before any training, and this layer's (k, v) slots, or None without cache.

        `outside` is the pair of image tokens [B, T, D], seated among zeros, and the mask [B, T, S] of those slots.
        """
        cfg, (memory, mask) = self.config, outside
        B, T, D = x.shape
        N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        q = Linear(N * H, False, self.dtype, name="q")(x).reshape(B, T, N, H)
        k = Linear(K * H, False, self.dtype, name="k")(memory).reshape(B, T, K, H)
        v = Linear(K * H, False, self.dtype, name="v")(memory).reshape(B, T, K, H)
        if own is not None:
            assert index is not None
            k, v = own = write(own[0], k, index), write(own[1], v, index)
        mixed, _ = _mix(q, k, v, mask, self.kind)
        mixed = jnp.where(mask.any(axis=-1)[..., None, None], mixed, 0)
        out = Linear(D, False, self.dtype, zero=True, name="out")(mixed.reshape(B, T, N * H))
        return out, own


class DecoderMLP(nn.Module):
    """down(silu(gate(x))·up(x)), SwiGLU (reference: `LlamaMLP`)."""

    config: TextConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the three products."""
        gate = Linear(self.config.intermediate_size, False, self.dtype, name="gate")(x)
        up = Linear(self.config.intermediate_size, False, self.dtype, name="up")(x)
        hidden = constrain(jax.nn.silu(gate) * up, "batch", "sequence", "mlp")
        return Linear(x.shape[-1], False, self.dtype, name="down")(hidden)


class DecoderLayer(nn.Module):
    """Pre-norm block (reference: `LlamaDecoderLayer`)."""

    config: TextConfig
    dtype: str
    kind: AttentionKind = "auto"
    capture: tuple[str, ...] = ()
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], own: Any, shared: Any) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the activations, and a pair of this layer's cache slots and captured intermediates."""
        eps = self.config.rms_norm_eps
        x = checkpoint_name(x, "layer_input")
        first, more = (None, None) if own is None else (own[:2], own[2:] or None)
        if shared[4] is not None:
            added, more = CrossAttention(self.config, self.dtype, self.kind, name="cross")(
                RMSNorm(eps, name="norm0")(x), more, shared[3], shared[4]
            )
            x = x + added
        keep = "attention" in self.capture
        attention = DecoderAttention(self.config, self.dtype, self.kind, keep, self.causal, name="attention")
        mixed, weights, first = attention(RMSNorm(eps, name="norm1")(x), first, shared)
        own = None if first is None else (*first, *(more or ()))
        x = constrain(x + mixed, "batch", "residual", None)
        x = x + DecoderMLP(self.config, self.dtype, name="mlp")(RMSNorm(eps, name="norm2")(x))
        x = constrain(x, "batch", "residual", None)
        found = {"hidden_states": x, "attention": weights}
        return x, (own, {key: found[key] for key in self.capture})


class Decoder(nn.Module):
    """SmolLM2 without word table and head (reference: `LlamaModel` called with `inputs_embeds`).

    Attributes:
      config: sizes, RoPE base, epsilon. `dataclasses.replace(config, num_layers=n)` with
        `smoljax.nn.stacking.truncate_layers` takes the first n layers of a backbone.
      compute: dtype, scan, remat.
      capture: any of "hidden_states" [L, B, T, D] (after each layer) and "attention" [L, B, N, T, S].
      image_attention: how image tokens are seen (`smoljax.sharing.SharingConfig`).
    """

    config: TextConfig
    compute: ComputeConfig = ComputeConfig()
    capture: tuple[str, ...] = ()
    image_attention: ImageAttention = "causal"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        branch_ids: Int[Array, "B T"] | None = None,
        is_image: Bool[Array, "B T"] | None = None,
        memory: Float[Array, "B T D"] | None = None,
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
          is_image: the image tokens' positions; None where there are none. Read unless image tokens are causal.
          memory: for "cross", the image tokens at those positions, zeros elsewhere; `x` holds none of them then.

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
            if self._takes_segments(branch_ids):
                ids = jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids
                mask: Any = Segments(jnp.where(attention_mask, ids, 0))
            else:
                mask = causal_mask(attention_mask, jnp.arange(T)[None], segment_ids, branch_ids=branch_ids)
                mask = constrain(mask, "batch", "sequence", None)
        else:
            if segment_ids is not None or branch_ids is not None:
                raise ValueError("a cache excludes segment_ids and branch_ids: packed rows are for training")
            if cache.num_slots < T:
                raise ValueError(f"{T} tokens do not fit a cache of {cache.num_slots} slots")
            index, own = jnp.asarray(cache.index), cache.per_layer()
            counted = counted + cache.valid.sum(axis=-1, keepdims=True, dtype=jnp.int32)
            seen = write(cache.valid, attention_mask, index)
            mask = causal_mask(seen, jnp.reshape(index, (-1, 1)) + jnp.arange(T)[None])
        mask, blocks, outside = self._images(mask, cache, segment_ids, is_image, memory, x)
        at_start = cache is None or cache.known_empty
        if cache is not None and at_start and "attention" not in self.capture:
            mask = mask[..., :T]  # no query sees the slots behind the prompt
        cos, sin = rope_tables(
            counted if positions is None else positions, self.config.head_dim, self.config.rope_theta
        )
        fields = {
            "config": self.config,
            "dtype": self.compute.dtype,
            "kind": self.compute.attention,
            "capture": self.capture,
            "causal": at_start and self.image_attention in ("causal", "cross"),
        }
        shared = (mask, cos, sin, index, outside)
        x, outs = apply_layers(
            DecoderLayer,
            fields,
            self.config.num_layers,
            self.compute,
            constrain(x.astype(self.compute.dtype), "batch", "residual", None),
            own,
            shared,
        )
        slots, found = outs if self.compute.scan_layers else (tuple(o[0] for o in outs), [o[1] for o in outs])
        if cache is not None:
            assert seen is not None
            assert index is not None
            k, v, *cross = slots if self.compute.scan_layers else zip(*slots, strict=True)
            fits = jnp.reshape(index + T <= cache.num_slots, (-1, 1, 1))
            x = jnp.where(fits, x, jnp.nan)
            cache = KVCache(
                k=k,
                v=v,
                valid=seen,
                index=index + T,
                cross=tuple(cross) or None,
                blocks=None if cache.blocks is None else blocks,
            )
        return RMSNorm(self.config.rms_norm_eps, name="final_norm")(x), cache, captured(found)

    def _takes_segments(self, branch_ids: Array | None) -> bool:
        """Whether the mask can be told to a kernel in numbers."""
        told = branch_ids is None and self.image_attention == "causal" and "attention" not in self.capture
        return told and kernel_for(self.compute.attention, self.compute.dtype) == "splash"

    def _images(
        self,
        mask: Any,
        cache: KVCache | None,
        segment_ids: Array | None,
        is_image: Array | None,
        memory: Array | None,
        x: Array,
    ) -> tuple[Any, Array | None, Any]:
        """The mask of words, which block each slot's image token belongs to, and what lies outside, or None."""
        if self.image_attention == "causal":
            return mask, None, None
        B, T, _ = x.shape
        new = jnp.zeros((B, T), jnp.int32) if is_image is None else image_blocks(is_image)
        if cache is None:
            blocks = new
        else:
            # Blocks of one call are told apart from those of the calls before it.
            new = jnp.where(new > 0, new + cache.blocks.max(axis=-1, keepdims=True), 0)
            blocks = write(cache.blocks, new, jnp.asarray(cache.index))
        if self.image_attention == "cross":
            outside = mask & (blocks > 0)[:, None, :]
            memory = jnp.zeros_like(x) if memory is None else memory
            return mask & (blocks == 0)[:, None, :], blocks, (memory.astype(self.compute.dtype), outside)
        together = (new[:, :, None] == blocks[:, None, :]) & (new > 0)[:, :, None]
        if segment_ids is not None:
            together &= segment_ids[:, :, None] == segment_ids[:, None, :]
        return mask | together, blocks, None
