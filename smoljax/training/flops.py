"""Model FLOPs of a training step, and the machine's own limit: what "model FLOPs utilisation" divides by what."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smoljax.config import SmolVLMConfig


def forward_flops(config: SmolVLMConfig, rows: int, tokens: int, tiles: int, decoder: bool = True) -> float:
    """Floating-point operations of one forward pass (a multiply-add is two; matrix products alone).

    Counted as in PaLM, appendix B (Chowdhery et al. 2022): every product with a weight, and attention as if
    nothing were masked; recomputation does not count.

    Args:
      config: the model's.
      rows: B.
      tokens: T, of a row, padding included.
      tiles: I, of a row, padding included.
      decoder: False: the patch encoder alone.
    """
    total = 0.0
    vision, text = config.vision, config.text
    if vision is not None:
        E, F, P = vision.hidden_size, vision.intermediate_size, vision.num_patches
        weights = vision.num_layers * (4 * E * E + 2 * E * F) + vision.num_channels * vision.patch_size**2 * E
        total += rows * tiles * (2 * P * weights + vision.num_layers * 4 * P * P * E)
    if not decoder:
        return total
    D, F, heads, H = text.hidden_size, text.intermediate_size, text.num_heads, text.head_dim
    if vision is not None and config.scale_factor is not None:
        total += rows * tiles * 2 * vision.num_patches * vision.hidden_size * D  # Q tokens of E·s² numbers
    layer = 2 * D * heads * H + 2 * D * text.num_kv_heads * H + 3 * D * F
    total += rows * tokens * 2 * (text.num_layers * layer + text.vocab_size * D)
    return total + rows * text.num_layers * 4 * tokens * tokens * heads * H


def train_flops(config: SmolVLMConfig, rows: int, tokens: int, tiles: int, decoder: bool = True) -> float:
    """A training step: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(config, rows, tokens, tiles, decoder)


def matmul_peak(dtype: str, size: int | None = None, repeats: int = 4) -> float:
    """Measured FLOP/s of square matrix products on all devices of this process together, the best of `repeats`.

    Args:
      dtype: of the product.
      size: of the matrices; by default 1536 on a CPU, 8192 elsewhere.
      repeats: how often.
    """
    devices = jax.local_devices()
    n = size or (1536 if devices[0].platform == "cpu" else 8192)
    mesh = Mesh(np.array(devices), ("d",))
    a = jax.device_put(jnp.ones((len(devices), n, n), dtype), NamedSharding(mesh, PartitionSpec("d")))
    product = jax.jit(lambda x: jnp.einsum("dij,djk->dik", x, x))
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * len(devices) * n**3 / best
