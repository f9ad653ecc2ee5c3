"""From a picture's size to its tiles: the arithmetic alone first, then the pixels.

Reference: `SmolVLMImageProcessorPil` (the PIL backend of transformers 5). Every resize works on bytes and
rounds back to bytes, so results are equal to the reference's bit by bit.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from smoljax.processing.config import ImageConfig

#: No side is longer than this after the first resize, whatever `longest_edge` says.
MAX_SIDE = 4096

Size = tuple[int, int]  # width, height in pixels, as Pillow orders them


@dataclass(frozen=True)
class TilePlan:
    """What will become of a picture, known before a pixel is touched.

    Attributes:
      source: (width, height) of the picture.
      resized: (width, height) after the first resize, aspect kept up to rounding.
      grid_size: (width, height) after the second one, a whole number of tiles (aspect not kept).
      rows, cols: the tiles cut out; (0, 0) for a picture that is one tile.
      tile_size: T, pixels of a tile's side.
    """

    source: Size
    resized: Size
    grid_size: Size
    rows: int
    cols: int
    tile_size: int

    @property
    def tiles(self) -> int:
        """Tiles the vision encoder sees: rows × cols and the whole picture, or 1."""
        return self.rows * self.cols + 1

    def image_tokens(self, image_seq_len: int) -> int:
        """`<image>` tokens of this picture."""
        return self.tiles * image_seq_len


def longest_edge_size(width: int, height: int, longest_edge: int) -> Size:
    """The size after scaling the longer side to `longest_edge`, up or down.

    The shorter side is truncated, then made even by adding one; at least 1. Python floats, in the reference's
    order of operations (`get_resize_output_image_size`).
    """
    aspect = width / height
    if width >= height:
        width = longest_edge
        height = int(width / aspect)
        height += height % 2
    else:
        height = longest_edge
        width = int(height * aspect)
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        width, height = int(MAX_SIDE * aspect), MAX_SIDE
    return max(width, 1), max(height, 1)


def tile_plan(width: int, height: int, config: ImageConfig) -> TilePlan:
    """The sizes, the grid and so the cost of a picture of `width` × `height` pixels."""
    tile = config.tile_size
    resized = longest_edge_size(width, height, config.longest_edge) if config.do_resize else (width, height)
    if not config.split:
        return TilePlan((width, height), resized, (tile, tile), 0, 0, tile)
    grid_w, grid_h = _grid_size(*resized, tile)
    if grid_w <= tile and grid_h <= tile:
        rows = cols = 0
    else:
        rows, cols = grid_h // tile, grid_w // tile
    return TilePlan((width, height), resized, (grid_w, grid_h), rows, cols, tile)


def _grid_size(width: int, height: int, tile: int) -> Size:
    # The other side follows the *rounded* one, so that the grid keeps the aspect as well as it can.
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / aspect) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * aspect) / tile) * tile
    return width, height


def cut_tiles(image: Image.Image, plan: TilePlan, resample: int) -> list[Image.Image]:
    """The tiles of an RGB picture: row by row, the whole picture last; each T×T."""
    image = resize(image, plan.resized, resample)
    image = resize(image, plan.grid_size, resample)
    if plan.rows == 0:
        return [image]
    tile = plan.tile_size
    tiles = [
        image.crop((col * tile, row * tile, (col + 1) * tile, (row + 1) * tile))
        for row in range(plan.rows)
        for col in range(plan.cols)
    ]
    return [*tiles, resize(image, (tile, tile), resample)]


def resize(image: Image.Image, size: Size, resample: int) -> Image.Image:
    """Pillow's resize on bytes; the picture itself where the size is right already."""
    return image if image.size == size else image.resize(size, resample=Image.Resampling(resample))


def normalize_table(config: ImageConfig) -> np.ndarray:
    """What each byte of each channel becomes: [3, 256] float32.

    Rescaled in float64 and rounded to float32, then (x − mean) / std in float32: the reference's own steps
    (`image_transforms.rescale`, `normalize`), so a look-up gives its numbers exactly.
    """
    values = np.arange(256, dtype=np.float64)
    values = (values * config.rescale_factor if config.do_rescale else values).astype(np.float32)
    table = np.broadcast_to(values, (3, 256)).copy()
    if config.do_normalize:
        mean = np.array(config.mean, np.float32)[:, None]
        std = np.array(config.std, np.float32)[:, None]
        table = (table - mean) / std
    return table


def apply_table(table: np.ndarray, tiles: list[Image.Image] | list[np.ndarray]) -> np.ndarray:
    """Bytes → numbers by a [3, 256] table.

    Args:
      table: from `normalize_table` or `smoljax.processing.video.frame_table`.
      tiles: I RGB pictures or uint8 arrays [h, w, 3] of one size.

    Returns:
      [I, 3, h, w] float32.
    """
    arrays = [np.asarray(tile) for tile in tiles]
    out = np.empty((len(arrays), 3, *arrays[0].shape[:2]), np.float32)
    for tile, target in zip(arrays, out, strict=True):
        for channel in range(3):
            np.take(table[channel], tile[..., channel], out=target[channel])
    return out
