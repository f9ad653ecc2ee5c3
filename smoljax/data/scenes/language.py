"""What can be said of a layout: references, relations, captions, facts."""

from collections.abc import Sequence

from smoljax.data.scenes.layout import Layout, PixelBox, Thing
from smoljax.data.scenes.vocabulary import SIDE

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
DOMINANT_PIXELS = 12.0
DOMINANT_RATIO = 1.3

_NUMBERS = ("One shape", "Two shapes", "Three shapes", "Four shapes", "Five shapes")
_INVERTED = {"left of": "to its right", "right of": "to its left", "above": "below it", "below": "above it"}


def relation(one: Thing, other: Thing) -> str | None:
    """Where `one` is from `other`: "left of", "right of", "above", "below", or None where that is unclear.

    Clear is a distance of middles of at least 12 pixels along one axis and 1.3 times that along the other.
    """
    dx, dy = one.middle[0] - other.middle[0], one.middle[1] - other.middle[1]
    if abs(dx) >= DOMINANT_PIXELS and abs(dx) >= DOMINANT_RATIO * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= DOMINANT_PIXELS and abs(dy) >= DOMINANT_RATIO * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def position(thing: Thing) -> str:
    """Its place on a grid of three by three: "at the top left", "in the centre", …"""
    x, y = thing.middle
    column, row = min(2, int(x / SIDE * 3)), min(2, int(y / SIDE * 3))
    words = (("top ", "", "bottom ")[row] + ("left", "", "right")[column]).strip()
    return f"at the {words}" if words else "in the centre"


def print_position(box: PixelBox) -> str:
    """The height of printed text: "at the top", "in the middle" or "at the bottom"."""
    row = min(2, int((box[1] + box[3]) / 2 / SIDE * 3))
    return ("at the top", "in the middle", "at the bottom")[row]


def phrase(thing: Thing) -> str:
    """All its words as a caption has them, without an article: "small striped red circle"; plain is unsaid."""
    texture = "" if thing.texture == "plain" else thing.texture + " "
    return f"{thing.size} {texture}{thing.colour} {thing.shape}"


def reference(things: Sequence[Thing], target: Thing, without: str = "") -> str:
    """The shortest phrase that fits `target` alone, "the red circle"; "" if there is none.

    Args:
      things: all that are in the picture.
      target: one of them.
      without: an attribute not to be named: "colour", "shape" ("the red shape"), "size" or "texture".
    """
    base = [word for word in ("colour", "shape") if word != without]
    for extra in ([], ["size"], ["texture"], ["size", "texture"]):
        if without in extra:
            continue
        named = [word for word in ("size", "texture", "colour", "shape") if word in base or word in extra]
        words = [getattr(target, word) for word in named]
        if sum([getattr(thing, word) for word in named] == words for thing in things) == 1:
            return "the " + " ".join(words + (["shape"] if without == "shape" else []))
    return ""


def facts(layout: Layout) -> list[str]:
    """What is true of the picture, in a form that can be compared; `parse_caption(…).facts()` gives the same.

    An object is "small striped red circle" (plain is said here), then "text:CAT", "background:sand", and for
    neighbours from left to right, where it is clear, "red circle|left of|blue square".
    """
    found = [f"{thing.size} {thing.texture} {thing.colour} {thing.shape}" for thing in layout.things]
    if layout.print.text:
        found.append(f"text:{layout.print.text}")
    found.append(f"background:{layout.background}")
    for one, other in zip(layout.things, layout.things[1:], strict=False):
        if (word := relation(one, other)) is not None:
            found.append(f"{one.colour} {one.shape}|{word}|{other.colour} {other.shape}")
    return found


def captions(layout: Layout) -> list[str]:
    """The three wordings, each naming every object from left to right, the background and what is printed."""
    return [_chain(layout), _steps(layout), _list(layout)]


def _printed(layout: Layout) -> str:
    return f'the {"number" if layout.print.is_number else "word"} "{layout.print.text}"'


def _runs(things: Sequence[Thing]) -> list[list[tuple[Thing, str]]]:
    """Neighbours as runs of clear relations: each thing with the relation to the next, "" at a run's end."""
    runs: list[list[tuple[Thing, str]]] = [[]]
    for k, thing in enumerate(things):
        word = relation(thing, things[k + 1]) if k + 1 < len(things) else None
        runs[-1].append((thing, word or ""))
        if word is None and k + 1 < len(things):
            runs.append([])
    return runs


def _chain(layout: Layout) -> str:
    """`A small red circle at the top left is left of a large blue square, which is above a …, on sand.`"""
    sentences = []
    for run in _runs(layout.things):
        (first, word), *rest = run
        text = f"A {phrase(first)}"
        if not rest:
            sentences.append(f"{text} is {position(first)}")
            continue
        text += f" {position(first)} is {word}"
        for thing, after in rest:
            text += f" a {phrase(thing)}" + (f", which is {after}" if after else "")
        sentences.append(text)
    text = ". ".join(sentences) + f", on {layout.background}."
    if layout.print.text:
        text += f" T{_printed(layout)[1:]} is printed {print_position(layout.print.box)}."
    return text


def _steps(layout: Layout) -> str:
    """`On sand, a small red circle is at the top left. To its right is a large blue square. …`"""
    sentences = []
    for run in _runs(layout.things):
        before = ""
        for thing, word in run:
            if before:
                sentences.append(f"{_INVERTED[before].capitalize()} is a {phrase(thing)}")
            else:
                sentences.append(f"A {phrase(thing)} is {position(thing)}")
            before = word
    text = f"On {layout.background}, a{sentences[0][1:]}. "
    text += "".join(f"{sentence}. " for sentence in sentences[1:])
    if layout.print.text:
        text += f"T{_printed(layout)[1:]} is {print_position(layout.print.box)}."
    return text.strip()


def _list(layout: Layout) -> str:
    """`Two shapes on sand: a small red circle at the top left, left of a large blue square.`"""
    parts = []
    for run in _runs(layout.things):
        text = ""
        for k, (thing, word) in enumerate(run):
            place = f" {position(thing)}" if k == 0 else ""
            text += f"a {phrase(thing)}{place}" + (f", {word} " if word else "")
        parts.append(text)
    if layout.print.text:
        parts.append(f"{_printed(layout)} {print_position(layout.print.box)}")
    return f"{_NUMBERS[len(layout.things) - 1]} on {layout.background}: {'; '.join(parts)}."
