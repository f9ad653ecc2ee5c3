"""From patches to image tokens, and from image tokens into the sequence: the shared embedding space."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def pixel_shuffle(x: Float[Array, "*B P E"], scale: int) -> Float[Array, "*B Q X"]:
    """Space to depth: every scale×scale block of patches becomes one token of X = E·scale² channels.

    Patches and tokens are row-major over a square grid; within a token the channels are ordered block row,
    block column, patch channel (reference: `SmolVLMConnector.pixel_shuffle`).
    """
    *batch, P, E = x.shape
    side = round(P**0.5)
    if side * side != P or side % scale:
        raise ValueError(f"pixel shuffle by {scale} needs a square grid divisible by it; got {P} patches")
    x = x.reshape(*batch, side // scale, scale, side // scale, scale, E)
    n = len(batch)
    x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
    return x.reshape(*batch, P // scale**2, E * scale**2)


def merge_image_features(
    embeddings: Float[Array, "B T D"],
    is_image: Bool[Array, "B T"],
    features: Float[Array, "B I Q D"],
    tile_mask: Bool[Array, "B I"],
) -> Float[Array, "B T D"]:
    """Replaces the k-th `<image>` position of each row by the k-th feature of that row's real tiles.

    Static shapes: cumulative sum, gather, select (reference: `SmolVLMModel.inputs_merger`). A row with more
    `<image>` positions than features gets NaN there, so that a mismatch cannot pass unnoticed under jit;
    `smoljax.processing` raises for it beforehand.

    Args:
      embeddings: word embeddings, in whose dtype the result is.
      is_image: positions to be replaced.
      features: image tokens of every tile, padding tiles included.
      tile_mask: False for padding tiles.
    """
    B, I, Q, D = features.shape
    order = jnp.argsort(~tile_mask, axis=-1, stable=True)
    flat = jnp.take_along_axis(features, order[:, :, None, None], axis=1).reshape(B, I * Q, D)
    index = jnp.cumsum(is_image, axis=-1) - 1
    available = tile_mask.sum(axis=-1, keepdims=True) * Q
    index = jnp.where(is_image & (index >= available), I * Q, jnp.maximum(index, 0))
    gathered = jnp.take_along_axis(flat, index[:, :, None], axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where(is_image[:, :, None], gathered.astype(embeddings.dtype), embeddings)


def image_blocks(is_image: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Which run of neighbouring `<image>` positions each position belongs to, from 1; 0 for words."""
    before = jnp.pad(is_image, ((0, 0), (1, 0)))[:, :-1]
    runs = jnp.cumsum(is_image & ~before, axis=-1, dtype=jnp.int32)
    return jnp.where(is_image, runs, 0)
