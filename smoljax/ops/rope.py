"""Rotary position embeddings in the half-split form of the released checkpoints (Su et al. 2021, NeoX layout)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rope_tables(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """cos and sin of every angle, float32 (reference: `LlamaRotaryEmbedding`).

    The frequencies theta^(−2i/H) are computed once on the host in float64 and rounded to float32; angles,
    cos and sin are float32 whatever the compute dtype, since bfloat16 cannot tell position 1000 from 1001.
    """
    inverse = (1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * inverse
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H"], sin: Float[Array, "B T H"]
) -> Float[Array, "B T N H"]:
    """x·cos + rotate_half(x)·sin, in the dtype of `x` (reference: `apply_rotary_pos_emb`)."""
    first, second = jnp.split(x, 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None].astype(x.dtype) + rotated * sin[:, :, None].astype(x.dtype)
