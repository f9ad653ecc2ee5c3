"""One layer at a time, backwards: the gradient of a score with respect to attention weights, and its roll-out.

The rule is that of Chefer et al. 2021 ("Generic Attention-model Explainability", arXiv 2103.15679, eqs. 5 and 6)
for self-attention: with A the attention weights of a layer and ∂s/∂A their gradient,

    Ā = mean over heads of max(A ⊙ ∂s/∂A, 0),    R ← R + Ā·R.

Only some rows of R are wanted (those of the places that predict the answer), and rows of a product can be made
from its left end: r ← r + r·Ā, last layer first. That is the order of the backward pass, so both run together and
no more than one layer's weights exist at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoljax.nn.decoder import DecoderAttention
from smoljax.nn.patch_encoder import EncoderAttention

#: A layer as a function: activations [B, T, D] → (activations [B, T, D], attention weights [B, N, T, S]).
Layer = Callable[[Array], tuple[Array, Array]]

#: jit of a function whose first argument is the model's config.
compiled = partial(jax.jit, static_argnums=0)


def attention_gradient(
    layer: Layer, x: Float[Array, "B T D"], gradient: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], Float[Array, "B N T S"], Float[Array, "B N T S"]]:
    """The backward pass through one layer that holds one attention.

    Args:
      layer: without a key-value cache, not rematerialised.
      x: its input.
      gradient: of the score with respect to its output.

    Returns:
      The gradients with respect to the input and to the attention weights, and the weights themselves.
    """
    shape = jax.eval_shape(layer, x)[1]

    def tapped(x: Array, tap: Array) -> tuple[Array, Array]:
        used: list[str] = []
        with nn.intercept_methods(_add_to_weights(tap, used)):
            y, weights = layer(x)
        if used != ["v", "out"]:
            raise RuntimeError(f"one attention with products v and out was expected, not {used}")
        return y, weights

    _, backward, weights = jax.vjp(tapped, x, jnp.zeros(shape.shape, shape.dtype), has_aux=True)
    dx, dweights = backward(gradient)
    return dx, dweights, weights


def relevance_step(
    layer: Layer,
    x: Float[Array, "B T D"],
    gradient: Float[Array, "B T D"],
    relevance: Float[Array, "B T"],
    normalised: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """Takes gradient and relevance from a layer's output to its input, float32.

    As published, r ← r + r·Ā. With `normalised`, r ← (r + r·Â) / 2 where the rows of Â are those of Ā scaled to sum 1
    (as in the roll-out of Abnar & Zuidema 2020; a row of zeros keeps its relevance). Then no relevance is lost or made,
    and what a place hands on does not drown in what it keeps where gradients are small.
    """
    dx, dweights, weights = attention_gradient(layer, x, gradient)
    product = weights.astype(jnp.float32) * dweights.astype(jnp.float32)
    step = jnp.maximum(product, 0.0).mean(axis=1)
    if not normalised:
        return dx, relevance + jnp.einsum("bt,bts->bs", relevance, step)
    total = step.sum(axis=-1)
    handed = jnp.where(total > 0, 0.5 * relevance, 0.0)
    passed = jnp.einsum("bt,bts->bs", handed / jnp.where(total > 0, total, 1.0), step)
    return dx, relevance - handed + passed


def layer_programs(
    build: Callable[..., Layer], *, normalised: bool = False
) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array]]]:
    """The two compiled programs of a kind of layer: forwards, and backwards by `relevance_step`.

    Args:
      build: (config, params of one layer, more arrays …) → the layer; `config` is static.
      normalised: see `relevance_step`.

    Returns:
      (config, params, x [B, T, D], *more) → [B, T, D], and
      (config, params, x, gradient [B, T, D], relevance [B, T], *more) → both with respect to the input.
    """

    @compiled
    def forward(config: Any, params: Any, x: Array, *more: Array) -> Array:
        return build(config, params, *more)(x)[0]

    @compiled
    def back(
        config: Any, params: Any, x: Array, gradient: Array, relevance: Array, *more: Array
    ) -> tuple[Array, Array]:
        return relevance_step(build(config, params, *more), x, gradient, relevance, normalised)

    return forward, back


def _add_to_weights(tap: Float[Array, "B N T S"], used: list[str]) -> Callable[..., Any]:
    """An interceptor that makes an attention behave as if `tap` had been added to its weights.

    What the weights mix, weights·v, is linear in them, so tap·v on top of the input of the `out` product is the
    same as weights + tap; the gradient at tap = 0 is the weights' own. `used` notes what was met.
    """
    values: list[Array] = []

    def intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module.parent, DecoderAttention | EncoderAttention):
            return next_fun(*args, **kwargs)
        if module.name == "v":
            used.append("v")
            values.append(next_fun(*args, **kwargs))
            return values[-1]
        if module.name == "out":
            used.append("out")
            return next_fun(args[0] + _mix(tap, values[-1], args[0]), *args[1:], **kwargs)
        return next_fun(*args, **kwargs)

    return intercept


def _mix(tap: Array, v: Array, mixed: Array) -> Array:
    """tap·v with heads joined as in `smoljax.ops.attention.attention`, in the shape of `mixed` [B, T, N·H]."""
    B, N, T, S = tap.shape
    H = mixed.shape[-1] // N
    K = v.shape[-1] // H
    grouped = tap.reshape(B, K, N // K, T, S)
    return jnp.einsum("bkgts,bskh->btkgh", grouped, v.reshape(B, S, K, H)).reshape(mixed.shape)
