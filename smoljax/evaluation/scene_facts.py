"""How much of a picture of `scenes` a description gets right: objects, attributes, relations.

The description is read by `smoljax.data.scenes.parse.parse_caption`; what is true comes from the picture's facts. A
colour belongs to a shape, a size or texture to a coloured shape: naming the wrong colour costs all three.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from smoljax.data.scenes.parse import parse_caption
from smoljax.evaluation.metrics.facts import fact_counts

#: Figures that follow from summed counts (`metrics.facts.f1`), and those that are means.
COUNTED = ("object_f1", "attribute_f1", "object_attribute_f1", "relation_f1", "text_f1")
SHARES = ("background", "all_objects")

_TURNED = {"right of": "left of", "below": "above"}


def score_description(description: str, facts: Sequence[str]) -> dict[str, Any]:
    """The counts [3] of `COUNTED` and the 0 or 1 of `SHARES` for one description.

    Args:
      description: what the model said.
      facts: the picture's truth, as `scenes` has it: "small plain red circle" for each object, "text:CAT",
        "background:sand", and "red circle|left of|blue square" for neighbours from left to right.
    """
    stated = parse_caption(description)
    things = [tuple(fact.split()) for fact in facts if ":" not in fact and "|" not in fact]
    named = dict(fact.split(":", 1) for fact in facts if ":" in fact)
    shapes = fact_counts([item[3] for item in stated.objects], [item[3] for item in things])
    attributes = fact_counts(_attributes(stated.objects), _attributes(things))
    relations = fact_counts(
        map(_left_or_above, stated.relations),
        (_left_or_above(fact.split("|")) for fact in facts if "|" in fact),
    )
    return {
        "object_f1": shapes,
        "attribute_f1": attributes,
        "object_attribute_f1": shapes + attributes,
        "relation_f1": relations,
        "text_f1": fact_counts(
            [stated.text] if stated.text else [], [named["text"]] if "text" in named else []
        ),
        "background": float(stated.background == named.get("background")),
        "all_objects": float(Counter(stated.objects) == Counter(things)),
    }


def _attributes(objects: Iterable[Sequence[str]]) -> list[Hashable]:
    found: list[Hashable] = []
    for size, texture, colour, shape in objects:
        found += [(colour, shape), (size, colour, shape), (texture, colour, shape)]
    return found


def _left_or_above(relation: Sequence[str]) -> Hashable:
    """A relation in one direction: "b right of a" is "a left of b"."""
    first, word, second = relation
    return (second, _TURNED[word], first) if word in _TURNED else (first, word, second)
