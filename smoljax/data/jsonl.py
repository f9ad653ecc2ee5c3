"""Records in a .jsonl file: one JSON object a line, pictures as paths beside it (docs/data.md)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smoljax.data.records import Box, Record, check_conversation
from smoljax.errors import SmoljaxError

_KEYS = {"id", "images", "messages", "conversations", "answers", "boxes", "caption", "meta"}


class JsonLines:
    """The lines of a file by number; where each begins is found once, when it is opened.

    Blank lines are passed over, but counted in messages, as editors count.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Finds the lines; SmoljaxError if there is no such file."""
        self.path = Path(path)
        starts, lines, place = [], [], 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        starts.append(place)
                        lines.append(number)
                    place += len(line)
        except FileNotFoundError as error:
            raise SmoljaxError(f"{path}: no such file") from error
        except OSError as error:
            raise SmoljaxError(f"{path}: cannot be read ({error.strerror})") from error
        self._ends = np.array([*starts[1:], place], np.int64)
        self._starts = np.array(starts, np.int64)
        self._numbers = np.array(lines, np.int64)
        self._descriptor = os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._starts)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def where(self, index: int) -> str:
        """FILE:LINE of a record."""
        return f"{self.path}:{self._numbers[index]}"

    def example(self, index: int) -> dict[str, Any]:
        """One line as a dict, with "where" ("FILE:LINE") and "folder" (what its paths start from) added.

        Raises:
          SmoljaxError: the line is not a JSON object.
        """
        where = self.where(index)
        start, end = int(self._starts[index]), int(self._ends[index])
        data = os.pread(self._descriptor, end - start, start)  # safe from several threads at once
        try:
            found = json.loads(data)
        except UnicodeDecodeError as error:
            raise SmoljaxError(f"{where}: not UTF-8") from error
        except json.JSONDecodeError as error:
            raise SmoljaxError(
                f"{where}: not a line of JSON ({error.msg} at character {error.pos})"
            ) from error
        if not isinstance(found, dict):
            raise SmoljaxError(f"{where}: a JSON object is wanted, not {type(found).__name__}")
        return {**found, "where": where, "folder": self.path.parent}


def jsonl_record(
    example: Mapping[str, Any],
    *,
    contrastive: bool = False,
    location_questions: bool = False,
    locations: int = 32,
) -> Record:
    """A line of the form that docs/data.md describes.

    Args:
      example: from `JsonLines.example`.
      contrastive: keep "caption" for contrastive training; else it is left out.
      location_questions: ask for the place of each box too ("Locate LABEL."), answered by location tokens.
      locations: location tokens in the vocabulary.

    Raises:
      SmoljaxError: naming file, line and record: an unknown or missing key, an unknown role, a missing
        picture, places and pictures that differ in number, a box outside its picture.
    """
    where = str(example["where"])
    name = example.get("id", where.rsplit("/", 1)[-1])
    at = where if name == where.rsplit("/", 1)[-1] else f"{where} ({name})"
    if unknown := sorted(set(example) - _KEYS - {"where", "folder"}):
        raise SmoljaxError(f"{at}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    images = tuple(_picture(item, Path(example["folder"]), at) for item in _list(example, "images", at))
    if ("messages" in example) == ("conversations" in example):
        raise SmoljaxError(f"{at}: give either 'messages' (one conversation) or 'conversations' (several)")
    talks = _list(example, "conversations", at) if "conversations" in example else [example["messages"]]
    for talk in talks:
        check_conversation(talk, len(images), at)
    boxes = _boxes(_list(example, "boxes", at), images, at)
    caption = example.get("caption")
    if caption is not None and (not isinstance(caption, str) or not caption.strip()):
        raise SmoljaxError(f"{at}: 'caption' is not a text")
    meta = example.get("meta", {})
    if not isinstance(meta, Mapping):
        raise SmoljaxError(f"{at}: 'meta' is not an object")
    if location_questions and boxes:
        talks = [*talks, *_located(boxes, images, locations)]
    return Record(
        id=str(name),
        images=images,
        conversations=tuple(tuple(talk) for talk in talks),
        answers=tuple(str(item) for item in _list(example, "answers", at)),
        boxes=boxes,
        caption=caption if contrastive else None,
        meta=meta,
    )


def _list(example: Mapping[str, Any], key: str, at: str) -> Sequence[Any]:
    found = example.get(key, [])
    if not isinstance(found, list):
        raise SmoljaxError(f"{at}: {key!r} is not a list")
    return found


def _picture(item: Any, folder: Path, at: str) -> Path:
    if not isinstance(item, str):
        raise SmoljaxError(f"{at}: a picture is given by its path, not by {type(item).__name__}")
    path = folder / item  # an absolute path stays as it is
    if not path.is_file():
        raise SmoljaxError(f"{at}: {path}: no such picture")
    return path


def _boxes(found: Sequence[Any], images: Sequence[Path], at: str) -> tuple[Box, ...]:
    if not found:
        return ()
    if not images:
        raise SmoljaxError(f"{at}: 'boxes' but no picture")
    width, height = _size(images[0], at)
    boxes = []
    for item in found:
        corners = item.get("box") if isinstance(item, Mapping) else None
        label = item.get("label") if isinstance(item, Mapping) else None
        if not (
            isinstance(label, str)
            and isinstance(corners, list)
            and len(corners) == 4
            and all(isinstance(value, int | float) for value in corners)
        ):
            raise SmoljaxError(f'{at}: a box is {{"label": TEXT, "box": [x0, y0, x1, y1]}}, not {item!r}')
        x0, y0, x1, y1 = corners
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise SmoljaxError(
                f"{at}: the box {corners} of {label!r} is empty or outside its picture of {width} × {height} pixels"
            )
        boxes.append(Box(label, (float(x0), float(y0), float(x1), float(y1))))
    return tuple(boxes)


def _located(boxes: Sequence[Box], images: Sequence[Path], locations: int) -> list[Any]:
    from smoljax.data.mappings import locate

    width, height = _size(images[0], "")
    return [locate(box, width, height, locations, pictures=len(images)) for box in boxes]


def _size(path: Path, at: str) -> tuple[int, int]:
    """(width, height) from the file's head, as it is shown (EXIF orientation applied)."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception as error:  # decoders may raise anything on broken bytes
        raise SmoljaxError(f"{at}: {path} is not a picture that can be read ({error})") from error
