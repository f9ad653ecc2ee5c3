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
from smoljax.ops.products import bfloat16_product, dot, int8_product, unpack_int4

#: Products of a decoder layer that read the same input, by module, and what they are together.
TOGETHER = {"attention": ("qkv", ("q", "k", "v")), "mlp": ("gate_up", ("gate", "up"))}


#: What a matrix [X, Y] is called as [Y, X]: products of several rows read it so a fifth faster on a CPU.
TRANSPOSED = {"kernel": "kernel_t", "int8": "int8_t"}


def pack(params: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's q|k|v and gate|up in one matrix each, and its matrices with their outputs first.

    Takes a whole model's parameters, quantised or not, in either layout of layers; everything else is passed on as it
    is. Such a tree is read inside `reading_weights` only; `unpack` is the inverse.
    """
    return {**params, "decoder": _pack(params["decoder"])}


def unpack(config: TextConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that `pack` was given: views where its arrays are NumPy's; the same arrays where nothing was packed."""
    heads, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"qkv": (heads, shared, shared), "gate_up": (config.intermediate_size,) * 2}
    return {**params, "decoder": _unpack(params["decoder"], sizes)}


def _pack(part: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in part.items():
        if not isinstance(value, Mapping):
            turned = key in TRANSPOSED
            out[TRANSPOSED.get(key, key)] = _side_by_side([value], turned) if turned else value
            continue
        name, parts = TOGETHER.get(key, ("", ()))
        name = name if parts and set(parts) <= set(value) else ""
        out[key] = _pack({other: leaf for other, leaf in value.items() if not name or other not in parts})
        if name:
            out[key][name] = {
                TRANSPOSED.get(leaf, leaf): _side_by_side(
                    [value[one][leaf] for one in parts], leaf in TRANSPOSED
                )
                for leaf in value[parts[0]]
            }
    return out


def _unpack(part: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    names = {there: here for here, there in TRANSPOSED.items()}
    out: dict[str, Any] = {}
    for key, value in part.items():
        if not isinstance(value, Mapping):
            out[names.get(key, key)] = value.swapaxes(-1, -2) if key in names else value
            continue
        name, parts = TOGETHER.get(key, ("", ()))
        out[key] = _unpack({other: leaf for other, leaf in value.items() if other != name}, sizes)
        if name in value:
            ends = np.cumsum((0, *sizes[name]))
            whole = _unpack(value[name], sizes)
            for one, start, end in zip(parts, ends, ends[1:], strict=False):
                out[key][one] = {leaf: array[..., start:end] for leaf, array in whole.items()}
    return out


def _side_by_side(leaves: list[Any], turned: bool) -> Any:
    """Matrices [X, Y] along Y, or vectors [Y]; `turned` as [Y, X]. NumPy's arrays stay NumPy's."""
    if turned:
        leaves = [leaf.swapaxes(-1, -2) for leaf in leaves]
    axis = -2 if turned else -1
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return jnp.concatenate(leaves, axis=axis) if len(leaves) > 1 else leaves[0]
    if len(leaves) == 1 and leaves[0].flags.c_contiguous:
        return leaves[0]
    shape = list(leaves[0].shape)
    shape[axis] = sum(leaf.shape[axis] for leaf in leaves)
    return np.concatenate(leaves, axis=axis, out=_aligned(tuple(shape), leaves[0].dtype))


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
        assert y is not None
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
    kernel: Any = own.get("kernel_t", own.get("kernel"))
    if "int8_t" in own:
        y = int8_product(x, own["int8_t"], own["scale"], transposed=True)
    elif "int8" in own:
        y = int8_product(x, own["int8"], own["scale"])
    elif "int4" in own:
        # Nothing is added; but so a layer is unpacked when its input is there, and not all layers at once.
        codes = own["int4"] + (x.ravel()[0].astype(jnp.float32) * 0).astype(jnp.uint8)
        y = int8_product(x, unpack_int4(codes, own["multiplier"]), own["scale"])
    elif kernel is not None and kernel.dtype == jnp.bfloat16 and dtype == "float32":
        y = bfloat16_product(x, kernel, transposed="kernel_t" in own)
    elif kernel is not None and "kernel_t" in own:
        y = dot(x.astype(dtype), kernel.astype(dtype), transposed=True)
    else:
        return None
    y = y.astype(dtype)
    return y + own["bias"].astype(dtype) if "bias" in own else y
