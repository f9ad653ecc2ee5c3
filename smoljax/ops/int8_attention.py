"""Keys and values in int8: how they are rounded, and attention that reads them as they are kept."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

#: Queries up to which reading keys and values is what costs; for more, they are made numbers once a layer.
FEW_QUERIES = 32


def round_int8(x: Float[Array, "*B H"]) -> tuple[Int8[Array, "*B H"], Float[Array, "*B"]]:
    """Values and scales of x ≈ values·scale, of each vector along the last axis on its own.

    Symmetric: a vector's largest number is 127 or -127 of its units, so that no number moves by more than half a unit.
    What is no number makes the scale none, and so is still seen.
    """
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1) / 127, jnp.finfo(jnp.float32).tiny)
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def int8_attention(
    q: Float[Array, "B T N H"],
    k: Int8[Array, "B S K H"],
    k_scale: Float[Array, "B S K"],
    v: Int8[Array, "B S K H"],
    v_scale: Float[Array, "B S K"],
    mask: Bool[Array, "#B #T S"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"]]:
    """`smoljax.ops.attention.attention` with keys k·k_scale and values v·v_scale.

    A slot's scale is one number a head, so it is multiplied into the scores and into the weights: neither keys nor
    values are ever made in float32 beyond the operand of the product at hand. Scores and softmax are float32.

    Args:
      q: queries.
      k, k_scale: keys of `round_int8`.
      v, v_scale: values of `round_int8`.
      mask: True where a query may look; None lets every query see every key.

    Returns:
      The mixed values and the weights, both in the dtype of `q`.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum(
        "btkgh,bskh->bkgts", grouped, k.astype(q.dtype), preferred_element_type=jnp.float32
    ) * _per_head(k_scale * H**-0.5)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    scaled = (weights * _per_head(v_scale)).astype(q.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", scaled, v.astype(q.dtype))
    return mixed.reshape(B, T, N, H), weights.astype(q.dtype).reshape(B, N, T, -1)


def _per_head(scale: Float[Array, "B S K"]) -> Float[Array, "B K 1 1 S"]:
    return scale.swapaxes(1, 2)[:, :, None, None]
