"""The SigLIP patch encoder: one tile of pixels → one vector a patch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from smoljax.config import AttentionKind, ComputeConfig, VisionConfig
from smoljax.nn.linear import LayerNorm, Linear
from smoljax.nn.stacking import apply_layers, captured
from smoljax.ops.attention import attend, attention
from smoljax.ops.partition import constrain
from smoljax.ops.patches import patchify, position_ids


class EncoderAttention(nn.Module):
    """Bidirectional multi-head attention with biases (reference: `SmolVLMVisionAttention`)."""

    config: VisionConfig
    dtype: str
    kind: AttentionKind = "auto"
    keep: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B P E"], mask: Bool[Array, "B 1 P"] | None
    ) -> tuple[Float[Array, "B P E"], Float[Array, "B N P P"] | None]:
        """Returns the output and, if they are to be kept, the attention weights."""
        B, P, E = x.shape
        heads = (B, P, self.config.num_heads, self.config.head_dim)
        q = Linear(E, True, self.dtype, name="q")(x).reshape(heads)
        k = Linear(E, True, self.dtype, name="k")(x).reshape(heads)
        v = Linear(E, True, self.dtype, name="v")(x).reshape(heads)
        q, k, v = (
            checkpoint_name(constrain(array, "tiles", None, "vision_heads", None), name)
            for name, array in (("q", q), ("k", k), ("v", v))
        )
        weights = None
        if self.keep:
            mixed, weights = attention(q, k, v, mask)
        else:
            mixed = attend(q, k, v, mask, self.kind, ("tiles", None, "vision_heads"))
        out = Linear(E, True, self.dtype, name="out")(mixed.reshape(B, P, E))
        return checkpoint_name(out, "attention_out"), weights


class EncoderMLP(nn.Module):
    """fc1 → tanh-GELU → fc2 (reference: `SmolVLMVisionMLP`)."""

    config: VisionConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B P E"]) -> Float[Array, "B P E"]:
        """Applies the two products and the activation between them."""
        hidden = Linear(self.config.intermediate_size, True, self.dtype, name="fc1")(x)
        hidden = constrain(hidden, "tiles", None, "mlp")
        return Linear(x.shape[-1], True, self.dtype, name="fc2")(jax.nn.gelu(hidden, approximate=True))


class EncoderLayer(nn.Module):
    """Pre-LN transformer block (reference: `SmolVLMEncoderLayer`)."""

    config: VisionConfig
    dtype: str
    kind: AttentionKind = "auto"
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B P E"], own: None, mask: Bool[Array, "B 1 P"] | None
    ) -> tuple[Float[Array, "B P E"], dict[str, Array]]:
        """Returns the activations and what was asked for in `capture`."""
        eps = self.config.layer_norm_eps
        x = checkpoint_name(x, "layer_input")
        keep = "attention" in self.capture
        mixed, weights = EncoderAttention(self.config, self.dtype, self.kind, keep, name="attention")(
            LayerNorm(eps, name="norm1")(x), mask
        )
        x = x + mixed
        x = x + EncoderMLP(self.config, self.dtype, name="mlp")(LayerNorm(eps, name="norm2")(x))
        x = constrain(x, "tiles", None, None)
        found = {"hidden_states": x, "attention": weights}
        return x, {key: found[key] for key in self.capture}


class PatchEncoder(nn.Module):
    """SigLIP without pooling head (reference: `SmolVLMVisionTransformer`; Zhai et al. 2023).

    Attributes:
      config: sizes, patch size, epsilon, position-id variant.
      compute: dtype, scan, remat.
      capture: any of "hidden_states" [L, B, P, E] (after each layer) and "attention" [L, B, N, P, P].
    """

    config: VisionConfig
    compute: ComputeConfig = ComputeConfig()
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "B C h w"], patch_mask: Bool[Array, "B r c"] | None = None
    ) -> tuple[Float[Array, "B P E"], dict[str, Array]]:
        """Encodes tiles.

        Args:
          pixel_values: normalised tiles, channels first (`jnp.moveaxis(x, -1, -3)` from channels last).
          patch_mask: False for patches that hold padding only; None where all pixels are real.

        Returns:
          One vector a patch, row-major, after the final norm; and the captured intermediates.
        """
        cfg, dtype = self.config, self.compute.dtype
        patches = constrain(patchify(pixel_values, cfg.patch_size), "tiles", None, None)
        x = Linear(cfg.hidden_size, True, dtype, name="patch_embedding")(patches)
        table = self.param(
            "position_embedding",
            nn.initializers.normal(cfg.hidden_size**-0.5),
            (cfg.num_patches, cfg.hidden_size),
            jnp.float32,
        )
        h, w = pixel_values.shape[-2:]
        seen = patch_mask
        if seen is None:
            seen = jnp.ones((1, h // cfg.patch_size, w // cfg.patch_size), bool)
        x = x + table.astype(dtype)[position_ids(seen, cfg.grid, cfg.position_ids)]
        keys = None if patch_mask is None else patch_mask.reshape(x.shape[0], 1, -1)
        fields = {"config": cfg, "dtype": dtype, "kind": self.compute.attention, "capture": self.capture}
        x = constrain(x, "tiles", None, None)
        x, outs = apply_layers(EncoderLayer, fields, cfg.num_layers, self.compute, x, None, keys)
        return LayerNorm(cfg.layer_norm_eps, name="final_norm")(x), captured(outs)
