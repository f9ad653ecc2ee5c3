"""The compiled steps of a relevance through the decoder, as pure functions of config, parameters and arrays.

Layers are taken out of the tree one by one, so one program serves all of a part, compiles in seconds whatever the
depth, and the memory of a backward pass is one layer's. The numbers are those of the whole model. `config` is static
and has neither scan_layers nor remat; parameters may be in either layout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.grounding.layers import Layer, compiled, layer_programs
from smoljax.nn.decoder import Decoder
from smoljax.nn.linear import RMSNorm
from smoljax.nn.packed import reading_weights
from smoljax.nn.smolvlm import SmolVLM, apply


def layer_params(part: Any, index: int) -> dict[str, Any]:
    """The parameters of layer `index` of a decoder or patch encoder, in either layout of layers."""
    if "layers" in part:
        return jax.tree.map(lambda leaf: leaf[index], part["layers"])
    return part[f"layers_{index}"]


@compiled
def embed(config: SmolVLMConfig, params: Any, batch: dict[str, Array]) -> Float[Array, "B T D"]:
    """The decoder's input: words and image tokens in one sequence."""
    x = apply(
        config,
        {"embedding": params["embedding"]},
        batch["input_ids"],
        batch.get("image_features"),
        batch.get("tile_mask"),
        method=SmolVLM.embed,
    )
    return jnp.asarray(x).astype(config.compute.dtype)


@compiled
def score_gradient(
    config: SmolVLMConfig,
    params: Any,
    x: Float[Array, "B T D"],
    places: Int[Array, "B M"],
    answers: Int[Array, "B M"],
    counted: Bool[Array, "B M"],
) -> tuple[Float[Array, " B"], Float[Array, "B T D"]]:
    """The score of each row's answer and its gradient with respect to the last layer's output.

    The score is the sum of log-odds, log p − log(1 − p), of the answer's tokens. For one token its gradient points
    the way of the log-probability's and does not vanish in rounding where a well trained model is sure (p → 1);
    over several it counts every token alike.

    Args:
      config: static.
      params: `embedding` and `decoder` are used.
      x: output of the last decoder layer, before the final norm.
      places: the positions that predict the answer's tokens.
      answers: the tokens.
      counted: False for tokens that do not count.
    """

    def score(x: Array) -> tuple[Array, Array]:
        seats = jnp.take_along_axis(x, places[:, :, None], axis=1)
        hidden = RMSNorm(config.text.rms_norm_eps).apply({"params": params["decoder"]["final_norm"]}, seats)
        logits = apply(config, {"embedding": params["embedding"]}, hidden, method=SmolVLM.logits)
        ours = jnp.take_along_axis(logits, answers[:, :, None], axis=2)[..., 0]
        is_ours = jnp.arange(logits.shape[-1]) == answers[:, :, None]
        others = jax.nn.logsumexp(jnp.where(is_ours, -jnp.inf, logits), axis=-1)
        rows = jnp.where(counted, ours - others, 0.0).sum(axis=-1)
        return rows.sum(), rows

    gradient, rows = jax.grad(score, has_aux=True)(x)
    return rows, gradient


@compiled
def image_gradient(
    config: SmolVLMConfig, params: Any, batch: dict[str, Array], gradient: Float[Array, "B T D"]
) -> Float[Array, "B I Q D"]:
    """From the gradient with respect to the decoder's input to that with respect to the image tokens."""
    features = batch["image_features"]
    _, backward = jax.vjp(lambda f: embed(config, params, {**batch, "image_features": f}), features)
    return backward(gradient)[0]


def make_decoder_layer(config: SmolVLMConfig, params: Any, mask: Array) -> Layer:
    """One layer of the decoder; `mask` [B, T] bool marks real tokens."""
    text = dataclasses.replace(config.text, num_layers=1)
    decoder = Decoder(text, config.compute, ("hidden_states", "attention"))
    # The module ends with the final norm; what is wanted is captured before it.
    norm = {"scale": jnp.ones((config.text.hidden_size,), jnp.float32)}

    def run(x: Array) -> tuple[Array, Array]:
        with reading_weights():
            out: Any = decoder.apply({"params": {"layers_0": params, "final_norm": norm}}, x, mask)
        found = out[2]
        return found["hidden_states"][0], found["attention"][0]

    return run


#: One decoder layer forwards and backwards: `smoljax.grounding.layers.layer_programs`, with the mask as more.
decoder_layer, decoder_layer_back = layer_programs(make_decoder_layer)
