"""Weights laid out for answering: products of one input in one matrix, read through one interception of `Linear`."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import TextConfig
from smoljax.nn.linear import Linear
from smoljax.ops.products import bfloat16_product, int8_product, unpack_int4

#: Products of a decoder layer that read the same input, by module, and what they are together.
TOGETHER = {"attention": ("qkv", ("q", "k", "v")), "mlp": ("gate_up", ("gate", "up"))}


def pack(params: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's q|k|v and gate|up side by side in one matrix each: fewer and larger products a layer.

    Takes a whole model's parameters, quantised or not, in either layout of layers; everything else is passed on as it
    is. Such a tree is read inside `reading_weights` only; `unpack` is the inverse.
    """
    return {**params, "decoder": _pack(params["decoder"])}


def unpack(config: TextConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that `pack` was given; the same arrays where nothing was packed."""
    heads, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"qkv": (heads, shared, shared), "gate_up": (config.intermediate_size,) * 2}
    return {**params, "decoder": _unpack(params["decoder"], sizes)}


def _pack(part: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in part.items():
        if key not in TOGETHER:
            out[key] = _pack(value) if isinstance(value, Mapping) else value
            continue
        name, parts = TOGETHER[key]
        if name in value:
            out[key] = dict(value)
            continue
        out[key] = {other: leaf for other, leaf in value.items() if other not in parts}
        out[key][name] = {
            leaf: _side_by_side([value[one][leaf] for one in parts]) for leaf in value[parts[0]]
        }
    return out


def _unpack(part: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in part.items():
        name, parts = TOGETHER.get(key, ("", ()))
        if not isinstance(value, Mapping):
            out[key] = value
        elif name not in value:
            out[key] = _unpack(value, sizes)
        else:
            out[key] = {other: leaf for other, leaf in value.items() if other != name}
            ends = np.cumsum((0, *sizes[name]))
            for one, start, end in zip(parts, ends, ends[1:], strict=False):
                out[key][one] = {leaf: array[..., start:end] for leaf, array in value[name].items()}
    return out


def _side_by_side(leaves: list[Any]) -> Any:
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return jnp.concatenate(leaves, axis=-1)
    shape = (*leaves[0].shape[:-1], sum(leaf.shape[-1] for leaf in leaves))
    return np.concatenate(leaves, axis=-1, out=_aligned(shape, leaves[0].dtype))


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins where a CPU device takes it as it is, without a copy: at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


@contextmanager
def reading_weights() -> Iterator[None]:
    """Inside, every `Linear` takes its matrix as it is stored: packed, int8, int4, bfloat16 beside float32 activations.

    To be entered where a model is traced; plain weights are read as ever.
    """
    waiting: dict[tuple[str, ...], jax.Array] = {}

    def read(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, Linear) or context.method_name != "__call__":
            return call(*args, **kwargs)
        (x,) = args
        if module.path in waiting:  # made together with the first of its kind
            return waiting.pop(module.path)
        own = module.variables.get("params", {})
        if own:
            y = product(x, own, module.dtype)
            return call(*args, **kwargs) if y is None else y
        name, parts = TOGETHER.get(module.path[-2], ("", ()))
        parent: Any = module.parent
        around = parent.variables.get("params", {})
        if name not in around or module.name != parts[0]:
            return call(*args, **kwargs)
        y = product(x, around[name], module.dtype)
        if y is None:
            y = jnp.dot(x.astype(module.dtype), around[name]["kernel"].astype(module.dtype))
        rest = (y.shape[-1] - module.features) // (len(parts) - 1)
        first, *others = jnp.split(y, [module.features + i * rest for i in range(len(parts) - 1)], axis=-1)
        waiting.update(
            {(*module.path[:-1], one): found for one, found in zip(parts[1:], others, strict=True)}
        )
        return first

    with nn.intercept_methods(read):
        yield


def product(x: jax.Array, own: Mapping[str, Any], dtype: str) -> jax.Array | None:
    """What a `Linear` with these parameters makes of `x`; None where they are plain and it does so itself."""
    if "int8" in own:
        y = int8_product(x, own["int8"], own["scale"])
    elif "int4" in own:
        # Nothing is added; but so a layer is unpacked when its input is there, and not all layers at once.
        codes = own["int4"] + (x.ravel()[0].astype(jnp.float32) * 0).astype(jnp.uint8)
        y = int8_product(x, unpack_int4(codes, own["multiplier"]), own["scale"])
    elif "kernel" in own and own["kernel"].dtype == jnp.bfloat16 and dtype == "float32":
        y = bfloat16_product(x, own["kernel"])
    else:
        return None
    y = y.astype(dtype)
    return y + own["bias"].astype(dtype) if "bias" in own else y
