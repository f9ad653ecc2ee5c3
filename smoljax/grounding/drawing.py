"""A grounding as a picture: heat laid over the photograph, boxes with their labels, question and answer below."""

import re
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smoljax.grounding.locate import Grounding, LabelledBox

#: Heat from 0 to 1: violet, magenta, red, orange, yellow; even in lightness.
_HEAT = np.array([(88, 40, 170), (178, 36, 140), (235, 64, 72), (255, 140, 30), (255, 222, 60)], np.float32)
_BOXES = ((64, 224, 208), (255, 255, 255), (170, 220, 60), (255, 150, 200))
_SHORTEST, _LONGEST = 640, 1280
_INK, _QUIET, _PAPER = (24, 24, 28), (110, 110, 120), (250, 250, 248)


def draw(found: Grounding) -> Image.Image:
    """The picture with heat, boxes and caption, RGB.

    The longer side is scaled to between 640 and 1280 pixels, so that small pictures can be read and large ones are
    no larger than they need be.
    """
    width, height = found.picture.size
    longer = max(width, height)
    scale = min(max(longer, _SHORTEST), _LONGEST) / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = overlay(found.picture.resize(size, Image.Resampling.LANCZOS), found.relevance.heat(*size))
    _draw_boxes(canvas, found.boxes, scale)
    return _with_caption(canvas, _drawable(found.prompt), _drawable(_words(found)) or "(no answer)")


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Heat [h, w] from 0 to 1 over an RGB picture of that size.

    Where there is none the picture stays, paler; the more there is, the more it is coloured. Light and dark remain, so
    that what lies under the heat can be seen.
    """
    pixels = np.asarray(picture, np.float32)
    heat = np.clip(heat, 0, 1)
    grey = (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    quiet = 0.9 * (0.4 * pixels + 0.6 * grey)
    place = heat * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    part = (place - low)[..., None]
    colour = (_HEAT[low] * (1 - part) + _HEAT[low + 1] * part) * (0.5 + 0.5 * grey / 255)
    alpha = 0.85 * (heat * heat * (3 - 2 * heat))[..., None]  # a smooth step: a little heat is not yet colour
    return Image.fromarray(np.round(quiet * (1 - alpha) + colour * alpha).astype(np.uint8))


def _draw_boxes(canvas: Image.Image, boxes: tuple[LabelledBox, ...], scale: float) -> None:
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(max(canvas.size) / 260))
    font = ImageFont.load_default(max(13, round(max(canvas.size) / 46)))
    for index, found in enumerate(boxes):
        colour = _BOXES[index % len(_BOXES)]
        x0, y0, x1, y1 = (value * scale for value in found.box)
        pen.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline=(0, 0, 0), width=1)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        label = _drawable(found.label)[:60]
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        wide, high = right - left + 10, bottom - top + 8
        x = min(max(0, x0), max(0, canvas.width - wide))
        y = y0 - high if y0 >= high else min(y1, canvas.height - high)
        pen.rectangle((x, y, x + wide, y + high), fill=colour)
        pen.text((x + 5 - left, y + 4 - top), label, font=font, fill=(0, 0, 0))


def _with_caption(canvas: Image.Image, question: str, answer: str) -> Image.Image:
    size = max(16, round(max(canvas.size) / 40))
    font, margin = ImageFont.load_default(size), size
    step = round(size * 1.35)
    room = canvas.width - 2 * margin
    asked = _wrap(question, font, room)
    said = _wrap(answer, font, room)
    paper = Image.new(
        "RGB", (canvas.width, canvas.height + step * (len(asked) + len(said)) + 2 * margin), _PAPER
    )
    paper.paste(canvas)
    pen, y = ImageDraw.Draw(paper), canvas.height + margin
    for lines, ink in ((asked, _QUIET), (said, _INK)):
        for text in lines:
            pen.text((margin, y), text, font=font, fill=ink)
            y += step
    return paper


def _wrap(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int, most: int = 6
) -> list[str]:
    """Lines that fit `room` pixels; words longer than a line are broken, what is beyond `most` lines cut."""
    lines = [""]
    for word in text.split():
        while word:
            tried = f"{lines[-1]} {word}".strip()
            if font.getlength(tried) <= room:
                lines[-1], word = tried, ""
            elif lines[-1]:
                lines.append("")
            else:
                fits = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= room), 1)
                lines[-1], word = word[:fits], word[fits:]
                if word:
                    lines.append("")
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]


def _words(found: Grounding) -> str:
    """The answer without the location tokens that are drawn as boxes; the boxes' labels where nothing else is said."""
    if not found.boxes:
        return found.answer
    return re.sub(r"<loc_\d+>", "", found.answer) or ", ".join(box.label for box in found.boxes)


def _drawable(text: str) -> str:
    """One line in letters that Pillow's own font has: accents are dropped."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))
