"""Boxes as location tokens: `<loc_3><loc_5><loc_20><loc_28>` is x0 y0 x1 y1 in bins of the picture's sides.

The scheme of Pix2Seq (Chen et al. 2021) and PaliGemma; the number of bins is whatever the vocabulary holds.
"""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_BOX = re.compile(r"<loc_(\d+)>" * 4)


def location_tokens(count: int) -> list[str]:
    """The tokens of `count` bins, in order."""
    return [f"<loc_{index}>" for index in range(count)]


def box_text(box: Sequence[float], width: float, height: float, count: int) -> str:
    """A box in pixels → four location tokens without spaces.

    Args:
      box: x0, y0, x1, y1; x1 and y1 are the first pixels outside.
      width, height: of the picture, pixels.
      count: bins a side.
    """
    sides = (width, height, width, height)
    bins = [min(count - 1, max(0, int(value / side * count))) for value, side in zip(box, sides, strict=True)]
    return "".join(f"<loc_{index}>" for index in bins)


def find_boxes(text: str, width: float, height: float, count: int) -> list[Box]:
    """Every run of four location tokens in `text`, as pixels; a bin stands for its centre.

    Corners given the wrong way round are swapped, so a box never has a negative side.
    """
    boxes = []
    for match in _BOX.finditer(text):
        x0, y0, x1, y1 = ((min(int(part), count - 1) + 0.5) / count for part in match.groups())
        boxes.append((min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height))
    return boxes
