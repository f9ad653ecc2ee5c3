"""From the relevance of image tokens to a map over a picture: the geometry alone, in NumPy."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

Grid = tuple[int, int]


def tiles_of(grid: Grid) -> int:
    """Tiles of a picture cut into `grid` = (rows, cols); (0, 0) is one tile."""
    return grid[0] * grid[1] + 1


def picture_maps(tiles: np.ndarray, grids: Sequence[Grid]) -> list[np.ndarray]:
    """One map a picture.

    Args:
      tiles: [I, n, n], the relevance of every tile's tokens (or patches), in prompt order: rows of tiles first, the
        whole picture last.
      grids: (rows, cols) of each picture.

    Returns:
      For each picture [rows·n, cols·n] (or [n, n]) in the dtype of `tiles`, over the whole picture. Sums are kept:
      what the whole-picture tile found is spread evenly over the finer cells below each of its own. A tile counts as
      covered to its edge; an encoder whose patches do not divide it (384 px by 14) sees 6 px less.
    """
    n, start, maps = tiles.shape[1], 0, []
    for rows, cols in grids:
        *parts, whole = tiles[start : start + tiles_of((rows, cols))]
        start += len(parts) + 1
        if parts:
            local = (
                np.stack(parts).reshape(rows, cols, n, n).transpose(0, 2, 1, 3).reshape(rows * n, cols * n)
            )
            whole = local + np.repeat(np.repeat(whole, rows, axis=0), cols, axis=1) / (rows * cols)
        maps.append(whole)
    return maps


def spread(cells: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map [rows, cols] over a picture of `width` × `height` pixels: [height, width] float32, 0 to 1.

    Bicubic between the centres of the cells; the least value becomes 0 and the greatest 1. A map without differences
    is all zeros.
    """
    image = Image.fromarray(np.ascontiguousarray(cells, np.float32))
    smooth = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    low, high = float(smooth.min()), float(smooth.max())
    return (smooth - low) / (high - low) if high > low else np.zeros_like(smooth)


def peak(cells: np.ndarray, width: int, height: int) -> tuple[float, float]:
    """Where a map is greatest, as x, y in pixels: the middle of the greatest pixel of `spread`."""
    index = int(np.argmax(spread(cells, width, height)))
    return index % width + 0.5, index // width + 0.5
