"""A contact sheet: many scenes in one picture."""

from PIL import Image

from smoljax.data.scenes.scene import scene
from smoljax.data.scenes.vocabulary import SIDE

_GAP = 4


def contact_sheet(split: str = "validation", rows: int = 4, columns: int = 7, start: int = 0) -> Image.Image:
    """`rows` × `columns` pictures of `split` from number `start` on, at their own size, RGB."""
    pitch = SIDE + _GAP
    sheet = Image.new("RGB", (columns * pitch - _GAP, rows * pitch - _GAP), "white")
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        sheet.paste(Image.fromarray(scene(split, start + k).paint()[0]), (column * pitch, row * pitch))
    return sheet
