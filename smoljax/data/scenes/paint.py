"""A layout → a picture and its dense labels."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from smoljax.data.scenes.draws import Draws
from smoljax.data.scenes.glyphs import SCALE, glyph
from smoljax.data.scenes.grounds import ground
from smoljax.data.scenes.layout import LINE, Layout, Print, Thing
from smoljax.data.scenes.outlines import HOLE, outline
from smoljax.data.scenes.vocabulary import CELL, CELLS, CHARACTERS, SIDE

RGB = {
    "red": (216, 34, 38),
    "orange": (246, 132, 22),
    "yellow": (252, 220, 48),
    "green": (38, 148, 62),
    "blue": (36, 98, 222),
    "purple": (136, 56, 186),
    "pink": (250, 150, 194),
    "brown": (116, 68, 38),
}
_DARK_MARKS = ("orange", "yellow", "pink")
_NOISE = 1.0


def paint(layout: Layout, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The picture and, for each cell, the object on it.

    Returns:
      image: [96, 96, 3] uint8.
      cells: [12, 12] uint8; k where the k-th object of `layout.things` covers most of the cell, if that is
        a quarter of it or more; 0 elsewhere.
    """
    canvas = ground(layout.background, draws)
    cover = np.zeros((len(layout.things), CELLS, CELLS))
    for k, thing in enumerate(layout.things):
        alpha = _paint_thing(canvas, thing, draws)
        cover[k] = alpha.reshape(CELLS, CELL, CELLS, CELL).mean((1, 3))
    if layout.print.text:
        _paint_print(canvas, layout.print, draws)
    image = _light(canvas, draws)
    cells = np.where(cover.max(0) >= 0.25, cover.argmax(0) + 1, 0).astype(np.uint8)
    return image, cells


def character_cells(printed: Print) -> np.ndarray:
    """[12, 12] uint8: 1 + the index in `CHARACTERS` of the glyph whose box covers most of the cell.

    A cell counts where a glyph's box covers at least 30 % of it, or holds the cell's centre.
    """
    cells = np.zeros((CELLS, CELLS), np.uint8)
    best = np.zeros((CELLS, CELLS))
    edges = np.arange(CELLS) * CELL
    for character, (x0, y0, x1, y1) in zip(printed.text, printed.glyphs, strict=True):
        wide = np.clip(np.minimum(edges + CELL, x1) - np.maximum(edges, x0), 0, None)
        high = np.clip(np.minimum(edges + CELL, y1) - np.maximum(edges, y0), 0, None)
        area = np.outer(high, wide) / CELL**2
        middle = edges + CELL / 2
        holds = np.outer((middle >= y0) & (middle < y1), (middle >= x0) & (middle < x1))
        new = ((area >= 0.3) | holds) & (area > best)
        cells[new] = CHARACTERS.index(character) + 1
        best[new] = area[new]
    return cells


@functools.cache
def _marks(texture: str, angle: int, period: int) -> Image.Image:
    """[240, 240] at SCALE: white where the second tone goes. `angle` degrees, `period` tenths of a pixel."""
    y, x = np.mgrid[:240, :240] / SCALE
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    u, v = (c * x + s * y) / (period / 10), (c * y - s * x) / (period / 10)
    if texture == "striped":
        marked = (u % 1) < 0.46
    else:
        v = v + 0.5 * (np.floor(u) % 2)
        marked = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.31**2
    return Image.fromarray(marked.astype(np.uint8) * 255)


def _paint_thing(canvas: np.ndarray, thing: Thing, draws: Draws) -> np.ndarray:
    """Draws into `canvas` [96, 96, 3] float32; returns the coverage [96, 96] float32, 0 … 1."""
    x0, y0 = max(0, thing.box[0] - 4), max(0, thing.box[1] - 4)
    x1, y1 = min(SIDE, thing.box[2] + 4), min(SIDE, thing.box[3] + 4)
    size = ((x1 - x0) * SCALE, (y1 - y0) * SCALE)
    place = (np.array(thing.centre) - (x0, y0)) * SCALE
    corners = outline(thing.shape, thing.radius * SCALE, thing.angle) + place
    loop = [tuple(corner) for corner in (*corners, corners[0], corners[1])]

    shade = draws.between(0.93, 1.07)
    fill = tuple(int(min(255, max(0, v * shade + draws.between(-9, 9)))) for v in RGB[thing.colour])
    patch = Image.new("RGB", size, fill)
    if thing.texture != "plain":
        if thing.texture == "striped":
            marks = _marks("striped", 15 * draws.below(12), 46 + 4 * draws.below(4))
        else:
            marks = _marks("dotted", 15 * draws.below(6), 42 + 3 * draws.below(3))
        left, top = draws.below(240 - size[0]), draws.below(240 - size[1])
        other, share = ((70, 40, 40), 0.72) if thing.colour in _DARK_MARKS else ((255, 252, 244), 0.86)
        tone = tuple(int(share * b + (1 - share) * a) for a, b in zip(fill, other, strict=True))
        patch.paste(tone, (0, 0), marks.crop((left, top, left + size[0], top + size[1])))
    edge = tuple(int(0.42 * v) for v in fill)
    mask = Image.new("L", size)
    pen, stencil = ImageDraw.Draw(patch), ImageDraw.Draw(mask)
    width = round(2 * LINE * SCALE)
    stencil.polygon(loop, fill=255)
    stencil.line(loop, fill=255, width=width, joint="curve")
    pen.line(loop, fill=edge, width=width, joint="curve")
    if thing.shape == "ring":
        reach = thing.radius * SCALE * HOLE
        hole = [(place[0] - reach, place[1] - reach), (place[0] + reach, place[1] + reach)]
        stencil.ellipse(hole, fill=0)
        pen.ellipse([tuple(hole[0] - np.array(2)), tuple(hole[1] + np.array(2))], outline=edge, width=width)
    small = mask.reduce(SCALE)
    alpha = np.asarray(small, np.float32) / 255
    colour = np.asarray(patch.reduce(SCALE), np.float32)

    region = canvas[y0:y1, x0:x1]
    soft = np.asarray(small.filter(ImageFilter.BoxBlur(1)), np.float32) / 255
    region[2:, 1:] *= 1 - 0.38 * soft[:-2, :-1, None]
    region += alpha[..., None] * (colour - region)
    whole = np.zeros((SIDE, SIDE), np.float32)
    whole[y0:y1, x0:x1] = alpha
    return whole


def _paint_print(canvas: np.ndarray, printed: Print, draws: Draws) -> None:
    x0, y0, x1, y1 = printed.box
    line = np.zeros((printed.height, x1 - x0), np.float32)
    for character, box in zip(printed.text, printed.glyphs, strict=True):
        bold = glyph(character, printed.height)
        high, wide = bold.shape[0] // SCALE, bold.shape[1] // SCALE
        line[:, box[0] - x0 : box[2] - x0] = bold.reshape(high, SCALE, wide, SCALE).mean((1, 3)) / 255
    light = np.array([draws.between(240, 254) for _ in range(3)], np.float32)
    dark = np.array([draws.between(12, 56) for _ in range(3)], np.float32)
    if printed.plate:
        paper, ink = (light, dark) if draws.chance(0.7) else (dark, light)
        px0, py0, px1, py1 = max(0, x0 - 3), max(0, y0 - 3), min(SIDE, x1 + 3), min(SIDE, y1 + 3)
        canvas[py0 + 1 : py1 + 1, px0 + 1 : px1 + 1] *= 0.7
        canvas[py0:py1, px0:px1] = 0.6 * paper + 0.4 * dark
        canvas[py0 + 1 : py1 - 1, px0 + 1 : px1 - 1] = paper
    else:
        ink = dark if canvas[y0:y1, x0:x1].mean() > 118 else light
    region = canvas[y0:y1, x0:x1]
    region += line[..., None] * (ink - region)


@functools.cache
def _noise_bank() -> np.ndarray:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([20, 11])))
    grain = random.normal(0, _NOISE, (256, 256, 1))
    return grain.astype(np.float32)


def _light(canvas: np.ndarray, draws: Draws) -> np.ndarray:
    """Light from one side, a little noise → uint8."""
    angle, strength = draws.between(0, 2 * math.pi), draws.between(0.02, 0.13)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slope = ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)
    level = (1 + strength * slope) * draws.between(0.93, 1.04)
    x, y = draws.below(256 - SIDE), draws.below(256 - SIDE)
    lit = canvas * level[..., None].astype(np.float32) + _noise_bank()[y : y + SIDE, x : x + SIDE]
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)
