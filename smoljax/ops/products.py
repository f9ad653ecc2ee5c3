"""Products with weights in fewer bits, exact but for the rounding of the weights themselves.

A CPU's own products of int8 with int8, and of bfloat16 with bfloat16, read a quarter and half of the bytes of float32,
but they want both sides in few bits. So activations are split, not rounded: x = s·(a + b/254) with a and b in int8, or
x = a + b with two bfloat16 numbers; both parts go through one product as rows of one matrix. That keeps 15 bits of a
row's largest number, or 16 of each. A product of one row is slow there and one of two rows is not, so the second part
is free where it counts, in decoding. On GPU and TPU the weights are converted at use, and the compiler fuses that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, UInt8

from smoljax.ops.partition import platform

#: Rows up to which a product is bound by reading the weights; above, two parts cost more than a conversion.
FEW_ROWS = 32


def bfloat16_product(
    x: Float[Array, "*B X"], kernel: Float[Array, "X Y"] | Float[Array, "Y X"], *, transposed: bool = False
) -> Float[Array, "*B Y"]:
    """x·kernel in float32, from a bfloat16 `kernel`, [Y, X] where it is `transposed`."""

    def converted(x: Array) -> Array:
        return dot(x, kernel.astype(jnp.float32), transposed=transposed, dtype=jnp.float32)

    def split(x: Array) -> Array:
        first = x.astype(jnp.bfloat16)
        second = (x - first.astype(jnp.float32)).astype(jnp.bfloat16)
        parts = dot(jnp.concatenate([first, second]), kernel, transposed=transposed, dtype=jnp.float32)
        return parts[: len(x)] + parts[len(x) :]

    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    few = platform() == "cpu" and rows.shape[0] <= FEW_ROWS
    y = _derived_from(split, converted)(rows) if few else converted(rows)
    return y.reshape(*x.shape[:-1], -1)


def int8_product(
    x: Float[Array, "*B X"],
    values: Int8[Array, "X Y"] | Int8[Array, "Y X"],
    scale: Float[Array, " Y"],
    *,
    transposed: bool = False,
) -> Float[Array, "*B Y"]:
    """x·(values·scale) in float32; `values` are [Y, X] where they are `transposed`."""

    def converted(x: Array) -> Array:
        return dot(x, values.astype(x.dtype), transposed=transposed, dtype=jnp.float32) * scale

    def split(x: Array) -> Array:
        tiny = jnp.finfo(jnp.float32).tiny
        unit = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), tiny) / 127
        first = jnp.round(x / unit)
        second = jnp.round((x / unit - first) * 254)
        both = jnp.concatenate([first, second]).astype(jnp.int8)
        parts = dot(both, values, transposed=transposed, dtype=jnp.int32).astype(jnp.float32)
        return (parts[: len(x)] + parts[len(x) :] / 254) * unit * scale

    if platform() != "cpu":
        return converted(x)
    y = _derived_from(split, converted)(x.astype(jnp.float32).reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], -1)


def bfloat16_rows(table: Float[Array, "V D"], ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """table[ids] of a bfloat16 table, by its bits: a CPU would convert the whole of it to float32 before it looks."""

    def by_bits(table: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[ids]
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)

    return _derived_from(by_bits, lambda table: table[ids])(table)


def _derived_from(function: Callable[[Array], Array], plain: Callable[[Array], Array]) -> Any:
    """`function` with the derivative of `plain`, the same product without rounding on the way."""
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda x, dx: (function(*x), plain(*dx)))
    return wrapped


def unpack_int4(codes: UInt8[Array, "half Y"], multipliers: UInt8[Array, "G Y"]) -> Int8[Array, "X Y"]:
    """Four-bit codes, two in a byte, times their group's multiplier: what `int8_product` takes, X = 2·half.

    The low halves of the bytes are the first X/2 rows, the high halves the rest; a code c means c - 8.
    """
    low, high = codes & 15, codes >> 4
    centred = jnp.concatenate([low, high]).astype(jnp.int8) - 8
    G, Y = multipliers.shape
    grouped = centred.reshape(G, -1, Y) * multipliers.astype(jnp.int8)[:, None]
    return grouped.reshape(-1, Y)


def dot(x: Array, matrix: Array, *, transposed: bool = False, dtype: Any = None) -> Array:
    """x·matrix over the last axis of `x`; `matrix` is [X, Y], or [Y, X] where it is `transposed`."""
    axes = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(x, matrix, axes, preferred_element_type=dtype)
