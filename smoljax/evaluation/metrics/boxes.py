"""Boxes and points in pictures. A box is x0, y0, x1, y1 in pixels; x1 and y1 are the first pixels outside."""

from collections.abc import Sequence

import numpy as np


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union in [0, 1]; 0 where both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = area(first) + area(second) - shared
    return shared / union if union > 0 else 0.0


def area(box: Sequence[float]) -> float:
    """Pixels inside; 0 for corners the wrong way round."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def points_at(heat: np.ndarray, box: Sequence[float]) -> float:
    """The pointing game (Zhang et al. 2016): 1.0 where the map's highest point lies in the box, else 0.0.

    No margin is given (the original allows 15 pixels, in photographs). A flat map points nowhere and fails; of
    several equal peaks the mean of their places counts, so that a saturated map wins nothing by its first corner.

    Args:
      heat: [height, width] of the picture, any scale.
      box: in the map's pixels.
    """
    peak = heat.max()
    if not np.isfinite(peak) or peak == heat.min():
        return 0.0
    y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(heat == peak))
    return float(box[0] <= x < box[2] and box[1] <= y < box[3])
