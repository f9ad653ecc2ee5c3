"""Captions back into what they state, for scoring: lenient, so that a model's own wording can be read."""

import itertools
import re
from dataclasses import dataclass

from smoljax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

_THING = re.compile(
    rf"\b(?:(?P<size>{'|'.join(SIZES)})\s+)?(?:(?P<texture>{'|'.join(TEXTURES)})\s+)?"
    rf"(?P<colour>{'|'.join(COLOURS)})\s+(?P<shape>{'|'.join(SHAPES)})s?\b",
    re.IGNORECASE,
)
_TEXT = re.compile(r'\b(?:word|number|text)\s+"?([A-Z0-9]+)"?')
_BACKGROUND = re.compile(rf"\bon\s+(?:an?\s+|the\s+)?({'|'.join(BACKGROUNDS)})\b", re.IGNORECASE)
# Said of the second object, from the first: so the relation of the first to the second is the opposite.
_TURNED = (
    (re.compile(r"\bto (?:its|the) right\b", re.IGNORECASE), "left of"),
    (re.compile(r"\bto (?:its|the) left\b", re.IGNORECASE), "right of"),
    (re.compile(r"\bbelow it\b", re.IGNORECASE), "above"),
    (re.compile(r"\babove it\b", re.IGNORECASE), "below"),
)
_STRAIGHT = re.compile(r"\b(left of|right of|above|below)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption states.

    Attributes:
      objects: (size, texture, colour, shape) of each object in the order named. A size not said is "";
        a texture not said is "plain".
      text: what it says is printed, or "".
      background: or "".
      relations: ("red circle", "left of", "blue square") of objects named one after the other.
    """

    objects: tuple[tuple[str, str, str, str], ...]
    text: str
    background: str
    relations: tuple[tuple[str, str, str], ...]

    def facts(self) -> list[str]:
        """The form of the data set's feature `facts`."""
        found = [" ".join(word for word in words if word) for words in self.objects]
        if self.text:
            found.append(f"text:{self.text}")
        if self.background:
            found.append(f"background:{self.background}")
        return found + ["|".join(words) for words in self.relations]


def parse_caption(text: str) -> ParsedCaption:
    """Reads any of the three wordings, and what is like them; words it does not know are passed over."""
    printed = _TEXT.search(text)
    # A printed word may be "BLUE" or "SNOW": what stands in quotes is not read as description.
    prose = re.sub(r'"[^"]*"', '""', text)
    matches = list(_THING.finditer(prose))
    objects = tuple(
        (
            (match["size"] or "").lower(),
            (match["texture"] or "plain").lower(),
            match["colour"].lower(),
            match["shape"].lower(),
        )
        for match in matches
    )
    relations = []
    for k, (one, other) in enumerate(itertools.pairwise(matches)):
        if word := _relation(prose[one.end() : other.start()]):
            relations.append((" ".join(objects[k][2:]), word, " ".join(objects[k + 1][2:])))
    background = _BACKGROUND.search(prose)
    return ParsedCaption(
        objects,
        printed[1] if printed else "",
        background[1].lower() if background else "",
        tuple(relations),
    )


def _relation(between: str) -> str:
    for pattern, word in _TURNED:
        if pattern.search(between):
            return word
    found = _STRAIGHT.search(between)
    return found[1].lower() if found else ""
