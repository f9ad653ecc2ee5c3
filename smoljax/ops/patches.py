"""From pixels to patches, and which learned position each patch gets."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import PositionIds


def patchify(pixel_values: Float[Array, "*B C h w"], patch_size: int) -> Float[Array, "*B P X"]:
    """Cuts tiles into non-overlapping patches of X = C·p·p values, row-major, ordered channel, row, column.

    Pixels at the right and bottom that do not fill a patch are dropped, as a "valid" convolution does
    (384 px with patch 14 keeps 378). A matrix product with the reshaped kernel of the reference's `Conv2d`
    then is that convolution.
    """
    *batch, C, h, w = pixel_values.shape
    rows, cols, p = h // patch_size, w // patch_size, patch_size
    x = pixel_values[..., : rows * p, : cols * p].reshape(*batch, C, rows, p, cols, p)
    n = len(batch)
    x = x.transpose(*range(n), n + 1, n + 3, n, n + 2, n + 4)
    return x.reshape(*batch, rows * cols, C * p * p)


def patch_mask(pixel_mask: Bool[Array, "*B h w"], patch_size: int) -> Bool[Array, "*B r c"]:
    """True for patches with at least one real pixel."""
    *batch, h, w = pixel_mask.shape
    rows, cols, p = h // patch_size, w // patch_size, patch_size
    x = pixel_mask[..., : rows * p, : cols * p].reshape(*batch, rows, p, cols, p)
    return x.any(axis=(-3, -1))


def position_ids(mask: Bool[Array, "*B r c"], grid: int, variant: PositionIds) -> Int[Array, "*B P"]:
    """Row of the position table for every patch of a possibly partly filled tile, computed in float32.

    Args:
      mask: True for patches with real pixels; the real ones fill a rectangle from the top left.
      grid: n, the side of the learned n×n table.
      variant: "arange": the patch's own place, what the models were trained with;
        "bucket": transformers ≥ 4.57 and 5: the real rectangle is stretched over the table, masked patches
        take row 0; the same as "arange" for full tiles;
        "hf_4_55": transformers 4.55–4.56: as "bucket" with the shifted fractions of those versions, whose
        full tiles read rows 0, 0, 1, …, n−2.

    Returns:
      Ids below n², row-major.
    """
    *batch, rows, cols = mask.shape
    if variant == "arange":
        ids = jnp.arange(rows)[:, None] * grid + jnp.arange(cols)
        return jnp.broadcast_to(ids.reshape(-1), (*batch, rows * cols)).astype(jnp.int32)
    step = 1.0 / grid
    count = math.ceil((1.0 - step) / step)
    boundaries = jnp.asarray((step + np.arange(count) * step).astype(np.float32))
    row_ids = _buckets(mask[..., :, 0], boundaries, variant)
    col_ids = _buckets(mask[..., 0, :], boundaries, variant)
    ids = row_ids[..., :, None] * grid + col_ids[..., None, :]
    return jnp.where(mask, ids, 0).reshape(*batch, rows * cols).astype(jnp.int32)


def _buckets(
    filled: Bool[Array, "*B n"], boundaries: Float[Array, " m"], variant: PositionIds
) -> Int[Array, "*B n"]:
    index = jnp.arange(filled.shape[-1], dtype=jnp.float32)
    real = filled.sum(axis=-1, keepdims=True).astype(jnp.float32)
    if variant == "hf_4_55":
        fraction = index / real * (1.0 - 1e-6)
    else:
        fraction = jnp.minimum(index * (1.0 / real), 1.0 - 1e-6)
    return jnp.searchsorted(boundaries, fraction, side="right")
