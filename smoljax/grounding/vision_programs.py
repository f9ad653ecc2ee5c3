"""The compiled steps of a relevance through connector and patch encoder: from image tokens to patches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoljax.config import SmolVLMConfig
from smoljax.grounding.layers import Layer, compiled, layer_programs
from smoljax.nn.linear import LayerNorm
from smoljax.nn.packed import reading_weights
from smoljax.nn.patch_encoder import EncoderLayer, PatchEncoder
from smoljax.nn.smolvlm import SmolVLM, apply


@compiled
def patch_embedding(
    config: SmolVLMConfig, params: Any, pixels: Float[Array, "X C h w"]
) -> Float[Array, "X P E"]:
    """What the first layer of the patch encoder gets; `params` are those of the whole encoder."""
    assert config.vision is not None
    met: list[Array] = []

    def intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "final_norm":
            met.append(args[0])
        return next_fun(*args, **kwargs)

    encoder = PatchEncoder(dataclasses.replace(config.vision, num_layers=0), config.compute)
    with nn.intercept_methods(intercept), reading_weights():
        encoder.apply({"params": params}, pixels)
    return met[0]


@compiled
def connector_back(
    config: SmolVLMConfig,
    params: Any,
    x: Float[Array, "X P E"],
    gradient: Float[Array, "X Q D"],
    relevance: Float[Array, "X Q"],
) -> tuple[Float[Array, "X P E"], Float[Array, "X P"]]:
    """Takes gradient and relevance from image tokens to the patches of the last encoder layer.

    The released connector is linear, so gradient · patch is exactly a patch's part in what its token does (of another
    connector, to first order); a token's relevance is shared out by the positive parts of its scale² patches, evenly
    where none is positive.
    """
    vision, scale = config.vision, config.scale_factor
    assert vision is not None
    assert scale is not None
    norm = LayerNorm(vision.layer_norm_eps)
    normed, norm_back = jax.vjp(
        lambda x: jnp.asarray(norm.apply({"params": params["vision"]["final_norm"]}, x)), x
    )

    def connect(patches: Array) -> Array:
        own = {name: part for name, part in params.items() if name != "vision"}
        return jnp.asarray(apply(config, own, patches, method=SmolVLM.connect)[0])

    _, back = jax.vjp(connect, normed)
    (dpatches,) = back(gradient)
    parts = jnp.maximum((dpatches * normed).astype(jnp.float32).sum(axis=-1), 0.0)
    X, side = x.shape[0], vision.grid // scale
    blocks = parts.reshape(X, side, scale, side, scale)
    total = blocks.sum(axis=(2, 4), keepdims=True)
    share = jnp.where(total > 0, blocks / jnp.where(total > 0, total, 1.0), 1.0 / scale**2)
    spread = (share * relevance.reshape(X, side, 1, side, 1)).reshape(X, -1)
    return norm_back(dpatches)[0], spread


def make_encoder_layer(config: SmolVLMConfig, params: Any) -> Layer:
    """One layer of the patch encoder."""
    assert config.vision is not None
    layer = EncoderLayer(config.vision, config.compute.dtype, capture=("attention",))

    def run(x: Array) -> tuple[Array, Array]:
        with reading_weights():
            out: Any = layer.apply({"params": params}, x, None, None)
        return out[0], out[1]["attention"]

    return run


# A token's relevance starts here as a whole, beside which the published step's additions all but vanish; so the step is
# the normalised one.
#: One layer of the patch encoder forwards and backwards: `smoljax.grounding.layers.layer_programs`.
encoder_layer, encoder_layer_back = layer_programs(make_encoder_layer, normalised=True)
