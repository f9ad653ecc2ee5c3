"""What stands where: a scene before it is drawn or spoken of."""

import math
from dataclasses import dataclass

import numpy as np

from smoljax.data.scenes.draws import Draws
from smoljax.data.scenes.glyphs import text_extent
from smoljax.data.scenes.outlines import outline
from smoljax.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    SEEN_WORDS,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    UNSEEN_PAIRS,
    UNSEEN_WORDS,
)

PixelBox = tuple[int, int, int, int]

LINE = 0.7
"""Half the width of the outline, pixels: so far a shape reaches beyond its corners."""
_MARGIN = 3
_WIDEST = 78
_DIAMETERS = {"small": (16.0, 20.0), "large": (28.0, 34.0)}


@dataclass(frozen=True)
class Thing:
    """One object: its words and its geometry.

    Attributes:
      shape, colour, size, texture: words of the vocabulary.
      centre: (x, y) pixels, of the shape's own coordinates.
      radius: pixels, of the circle the shape is cut from.
      angle: degrees, −12 … 12.
      box: x0, y0, x1, y1 pixels, x1 and y1 exclusive, tight around the drawn shape with its outline.
    """

    shape: str
    colour: str
    size: str
    texture: str
    centre: tuple[float, float]
    radius: float
    angle: float
    box: PixelBox

    @property
    def middle(self) -> tuple[float, float]:
        """The centre of the box, pixels: what every word of position and relation goes by."""
        return ((self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2)

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape)."""
        return (self.colour, self.shape)


@dataclass(frozen=True)
class Print:
    """What is printed in the picture.

    Attributes:
      text: upper case letters or digits; "" for nothing.
      height: cap height, pixels.
      box: x0, y0, x1, y1 pixels, exclusive, around the letters; zeros for nothing.
      glyphs: each character's own box.
      plate: whether it stands on a label plate.
    """

    text: str = ""
    height: int = 0
    box: PixelBox = (0, 0, 0, 0)
    glyphs: tuple[PixelBox, ...] = ()
    plate: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the text is a number rather than a word."""
        return self.text.isdigit()


@dataclass(frozen=True)
class Layout:
    """A scene's content. `things` go from left to right, by the middle of their boxes."""

    background: str
    things: tuple[Thing, ...]
    print: Print


def draw_layout(draws: Draws, unseen: bool) -> Layout:
    """A random layout.

    Args:
      draws: where the chance comes from.
      unseen: at least one object of a pair in `UNSEEN_PAIRS`, and half of the words kept out of training;
        without it, none of either.
    """
    background = draws.choice(BACKGROUNDS)
    while True:
        free = np.ones((SIDE, SIDE), bool)
        printed = _draw_print(draws, unseen)
        if printed.text:
            x0, y0, x1, y1 = printed.box
            free[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = False
        things = _place(draws, _draw_words(draws, unseen), free)
        if things is not None:
            things.sort(key=lambda thing: (*thing.middle, thing.box))
            return Layout(background, tuple(things), printed)


def _draw_print(draws: Draws, unseen: bool) -> Print:
    if not draws.chance(0.5):
        return Print()
    if draws.chance(0.6):
        kept_out = unseen and draws.chance(0.5)
        text = draws.choice(UNSEEN_WORDS if kept_out else SEEN_WORDS)
    else:
        digits = 1 + draws.below(3)
        text = (
            str(draws.below(10))
            if digits == 1
            else str(10 ** (digits - 1) + draws.below(9 * 10 ** (digits - 1)))
        )
    height = 11 + draws.below(5)
    while text_extent(text, height)[0] > _WIDEST:
        height -= 1
    width, advances, widths = text_extent(text, height)
    left = 4 + draws.below(SIDE - 8 - width)
    top = 4 + draws.below(SIDE - 8 - height)
    glyphs = tuple(
        (left + start, top, left + start + wide, top + height)
        for start, wide in zip(advances, widths, strict=True)
    )
    return Print(text, height, (left, top, left + width, top + height), glyphs, draws.chance(0.55))


def _draw_words(draws: Draws, unseen: bool) -> list[tuple[str, str, str, str]]:
    """(size, texture, colour, shape) of each object; likeness to earlier ones makes questions hard."""
    count = draws.weighted((1, 2, 3, 4, 5), (0.07, 0.16, 0.23, 0.26, 0.28))
    words: list[tuple[str, str, str, str]] = []
    for place in range(count):
        while True:
            colour, shape = draws.choice(COLOURS), draws.choice(SHAPES)
            if words:
                like = draws.choice(words)
                mood = draws.unit()
                if mood < 0.27:
                    shape = like[3]
                elif mood < 0.54:
                    colour = like[2]
                elif mood < 0.64:
                    colour, shape = like[2:]
            must = unseen and (place == 0 or draws.chance(0.3))
            if must and (colour, shape) not in UNSEEN_PAIRS and (place == 0 or draws.chance(0.8)):
                colour, shape = draws.choice(sorted(UNSEEN_PAIRS))
            if unseen or (colour, shape) not in UNSEEN_PAIRS:
                break
        size = draws.weighted(SIZES, (0.52, 0.48))
        words.append((size, draws.weighted(TEXTURES, (0.4, 0.3, 0.3)), colour, shape))
    return words


def _place(draws: Draws, words: list[tuple[str, str, str, str]], free: np.ndarray) -> list[Thing] | None:
    """The objects where they touch neither each other nor what is taken; None where there is no room."""
    things = []
    for size, texture, colour, shape in sorted(words, key=lambda word: word[0] == "small"):
        radius = draws.between(*_DIAMETERS[size]) / 2
        angle = draws.between(-12, 12)
        points = outline(shape, radius, angle)
        (low_x, low_y), (high_x, high_y) = points.min(0) - LINE, points.max(0) + LINE
        spots = _spots(free, math.ceil(max(-low_x, -low_y, high_x, high_y)))
        if spots.size == 0:
            return None
        row, column = divmod(int(spots[draws.below(spots.size)]), SIDE)
        x, y = column + draws.unit(), row + draws.unit()
        # A pixel counts as drawn where about a third of it is covered.
        box = (
            math.floor(x + low_x + 0.3),
            math.floor(y + low_y + 0.3),
            math.ceil(x + high_x - 0.3),
            math.ceil(y + high_y - 0.3),
        )
        free[max(0, box[1] - 2) : box[3] + 2, max(0, box[0] - 2) : box[2] + 2] = False
        things.append(Thing(shape, colour, size, texture, (x, y), radius, angle, box))
    return things


def _spots(free: np.ndarray, reach: int) -> np.ndarray:
    """Flat indices of the pixels around which a square of `reach` pixels each way is free and inside."""
    sums = np.zeros((SIDE + 1, SIDE + 1), np.int32)
    np.cumsum(np.cumsum(~free, 0, dtype=np.int32), 1, out=sums[1:, 1:])
    span = 2 * reach + 1
    taken = sums[span:, span:] - sums[:-span, span:] - sums[span:, :-span] + sums[:-span, :-span]
    inside = np.ones((SIDE, SIDE), bool)
    inside[reach : SIDE - reach, reach : SIDE - reach] = taken != 0
    inside[: max(reach, _MARGIN)] = True
    inside[:, : max(reach, _MARGIN)] = True
    inside[SIDE - reach - 1 :] = True
    inside[:, SIDE - reach - 1 :] = True
    return np.flatnonzero(~inside)
