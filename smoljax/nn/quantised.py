"""Weights in fewer bits: parameters are rounded once; `smoljax.nn.packed` says how they are read."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from smoljax.errors import SmoljaxError

#: How matrices are stored: int8 with a scale for each output, or int4 with a multiplier for each group of inputs.
Quantisation = Literal["int8", "int4"]
#: Inputs that share a multiplier in int4.
GROUP = 32
TABLES = ("table", "head", "rows", "head_rows")


def quantise(params: Mapping[str, Any], kind: Quantisation) -> dict[str, Any]:
    """Rounds every matrix of a model; biases, norms and position embeddings stay as they are, in float32.

    A `Linear`'s "kernel" [X, Y] becomes "int8" [X, Y] and "scale" [Y]; or "int4" [X/2, Y], two codes in a byte,
    "multiplier" [X/32, Y] and "scale" [Y] (`smoljax.ops.products.unpack_int4`), int8 where 32 does not divide X. Word
    tables [V, D] become int8 rows of the same name and a scale [V] of each row, "table_scale", with either kind.

    Args:
      params: of a whole model or a part, in either layout of layers; under `jax.eval_shape` shapes are enough.
      kind: "int8" or "int4".

    Raises:
      SmoljaxError: an unknown kind, or a tree that is quantised already.
    """
    if kind not in get_args(Quantisation):
        raise SmoljaxError(f"quantisation is {kind!r}; it must be {' or '.join(get_args(Quantisation))}")
    if kind_of(params) is not None:
        raise SmoljaxError("the weights are quantised already; quantise the original")
    return _quantise(params, kind)


def kind_of(params: Mapping[str, Any]) -> Quantisation | None:
    """How a tree's matrices are stored; None for plain weights."""
    kinds: set[Quantisation] = set()
    for key, value in params.items():
        if isinstance(value, Mapping):
            if inner := kind_of(value):
                kinds.add(inner)
        elif key == "int8" or key == "int4":
            kinds.add(key)
    return "int4" if "int4" in kinds else "int8" if kinds else None


def _quantise(params: Mapping[str, Any], kind: Quantisation) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            out[key] = _quantise(value, kind)
        elif key == "kernel":
            out |= _int4(value) if kind == "int4" and value.shape[-2] % GROUP == 0 else _int8(value)
        elif key in TABLES and value.ndim == 2:
            found = _int8(value, axis=-1)
            out |= {key: found["int8"], f"{key}_scale": found["scale"]}
        else:
            out[key] = value.astype(jnp.float32)
    return out


def _int8(kernel: Any, axis: int = -2) -> dict[str, jax.Array]:
    """Each output's largest number is 127 of its units."""
    kernel = jnp.asarray(kernel, jnp.float32)
    scale = _positive(jnp.max(jnp.abs(kernel), axis=axis, keepdims=True) / 127)
    return {"int8": jnp.round(kernel / scale).astype(jnp.int8), "scale": jnp.squeeze(scale, axis)}


def _int4(kernel: Any) -> dict[str, jax.Array]:
    """A group's largest number is 7 of its units, and its unit 1 to 15 of its output's."""
    *stack, X, Y = kernel.shape
    grouped = jnp.asarray(kernel, jnp.float32).reshape(*stack, X // GROUP, GROUP, Y)
    largest = jnp.max(jnp.abs(grouped), axis=-2, keepdims=True)
    scale = _positive(jnp.max(largest, axis=-3, keepdims=True) / (15 * 7))
    multiplier = jnp.clip(jnp.ceil(largest / (7 * scale)), 1, 15)
    codes = jnp.clip(jnp.round(grouped / (scale * multiplier)), -8, 7) + 8
    codes = codes.astype(jnp.uint8).reshape(*stack, X, Y)
    low, high = jnp.split(codes, 2, axis=-2)
    return {
        "int4": low | (high << 4),
        "multiplier": jnp.squeeze(multiplier, -2).astype(jnp.uint8),
        "scale": jnp.squeeze(scale, (-3, -2)),
    }


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
