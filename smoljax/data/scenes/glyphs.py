"""Bold capitals and digits from the font that Pillow carries, so no system font matters."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smoljax.data.scenes.vocabulary import CHARACTERS
from smoljax.errors import SmoljaxError

SCALE = 3
"""Drawn so many times larger, then averaged down."""
_GAP = 0.13
_BOLD = 0.06
_WIDTHS = {
    11: "bbccaacc59baeccacaaabbfbaaaaaaaaaaaa",
    12: "bbcdbacd6acbfddbdbbbcbgbbbaaaaaaaaaa",
    13: "dcdecbde6bdbgeececbcddicccbbbbbbbbbb",
    14: "ddeeccef7cdchffdfdcdedjddccccccccccc",
    15: "eeggedgg8cfdjggegedefekeeedddddddddd",
}
"""By cap height, the width of each of `CHARACTERS` in pixels, one digit to base 36 each: as measured once, so
that where things stand, and so what is said of them, does not depend on the FreeType that draws the letters."""


@functools.cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    """Pillow's font at the size whose capitals, made bold, are `height` pixels high after averaging down."""
    tall = height * SCALE
    size = tall * 1.4
    font = _sized(size)
    for _ in range(7):
        top, bottom = font.getbbox("H", stroke_width=_stroke(height))[1::2]
        if bottom - top == tall:
            break
        size *= tall / (bottom - top)
        font = _sized(size)
    return font


def _sized(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise SmoljaxError(
            "scenes needs a Pillow with FreeType for its letters: pip install --upgrade pillow"
        )
    return font


def _stroke(height: int) -> int:
    return max(1, round(_BOLD * height * SCALE))


def _width(character: str, height: int) -> int:
    return int(_WIDTHS[height][CHARACTERS.index(character)], 36)


@functools.cache
def glyph(character: str, height: int) -> np.ndarray:
    """[height · SCALE, w · SCALE] uint8 coverage of one character with up to 3 pixels of bearing at each side."""
    font, stroke = _font(height), _stroke(height)
    left = font.getbbox(character, stroke_width=stroke)[0]
    cap_top, cap_bottom = font.getbbox("H", stroke_width=stroke)[1::2]
    width = _width(character, height)
    image = Image.new("L", (width * SCALE, height * SCALE))
    # Round letters reach a little above and below the flat ones; they are squeezed into the same height.
    top, bottom = font.getbbox(character, stroke_width=stroke)[1::2]
    if top < cap_top or bottom > cap_bottom:
        whole = Image.new("L", (width * SCALE, int(bottom - top)))
        ImageDraw.Draw(whole).text((-left, -top), character, 255, font, stroke_width=stroke)
        image = whole.resize(image.size, Image.Resampling.BILINEAR)
    else:
        ImageDraw.Draw(image).text((-left, -cap_top), character, 255, font, stroke_width=stroke)
    return np.asarray(image)


def text_extent(text: str, height: int) -> tuple[int, list[int], list[int]]:
    """Whole width, each character's start and each character's width, in pixels of the picture."""
    gap = max(1, round(_GAP * height))
    starts, widths, at = [], [], 0
    for character in text:
        wide = _width(character, height)
        starts.append(at)
        widths.append(wide)
        at += wide + gap
    return at - gap, starts, widths
