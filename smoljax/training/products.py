"""Matrix products whose weight gradients are formed the way that XLA's CPU backend does well."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax.nn.linear import Linear


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·kernel, [..., in] × [in, out] → [..., out]; the same numbers as `x @ kernel`.

    The gradient of a kernel is xᵀ·dy. Autodiff forms it as (dyᵀ·x)ᵀ, and XLA's CPU backend then fuses whatever
    produced dy (the gradient of an activation) with the transposition and writes it column by column: a fifth of
    a training step at small widths. Here the narrower of x and dy is transposed.
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        d_kernel = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    else:
        d_kernel = jax.lax.dot_general(dy, x, ((rows, rows), ((), ()))).T
    return (dy @ kernel.T).astype(x.dtype), d_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)


@contextmanager
def trained_products() -> Iterator[None]:
    """Inside, every `Linear` multiplies by `product`; parameters and results stay as they are."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, Linear) or context.method_name != "__call__":
            return call(*args, **kwargs)
        (x,) = args
        dtype = jnp.dtype(module.dtype)
        kernel = module.get_variable("params", "kernel")
        y = checkpoint_name(product(x.astype(dtype), kernel.astype(dtype)), "product")
        if module.use_bias:
            y = y + module.get_variable("params", "bias").astype(dtype)
        return y

    with nn.intercept_methods(intercept):
        yield
