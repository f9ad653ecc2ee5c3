"""An independent reader of the scenes' questions, which knows objects as (words, box) only."""

import re

from smoljax.data.scenes.vocabulary import (
    COLOURS,
    KINDS,
    SHAPES,
    SIZES,
    TEXTURES,
)

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def side(one, other):
    dx = (one["box"][0] + one["box"][2] - other["box"][0] - other["box"][2]) / 2
    dy = (one["box"][1] + one["box"][3] - other["box"][1] - other["box"][3]) / 2
    if abs(dx) >= 12 and abs(dx) >= 1.3 * abs(dy):
        return "right" if dx > 0 else "left"
    if abs(dy) >= 12 and abs(dy) >= 1.3 * abs(dx):
        return "below" if dy > 0 else "above"
    return "unclear"


def matching(objects, words):
    words = [
        re.sub(r"^(crosse|circle|square|triangle|star|heart|diamond|ring)s$", r"\1", w) for w in words.split()
    ]
    words = [
        "cross" if word == "crosse" else word for word in words if word not in ("shape", "object", "shapes")
    ]
    assert all(word in (*SHAPES, *COLOURS, *SIZES, *TEXTURES) for word in words), words
    return [item for item in objects if set(words) <= set(item["words"])]


def only(objects, phrase):
    (found,) = matching(objects, phrase.removeprefix("the "))
    return found


def yes(truth):
    return "yes" if truth else "no"


def solve(question, objects, text):
    def found(pattern):
        return re.fullmatch(pattern, question)

    if m := found(r"(?:Is there|Can you see) an? (.+?)(?: in the picture)?\?"):
        return yes(matching(objects, m[1]))
    if found(r"How many shapes are there\?|How many objects are in the picture\?"):
        return str(len(objects))
    if m := found(r"(?:How many|Count the) (.+?)(?: are there\?| are in the picture\?|\.)"):
        return str(len(matching(objects, m[1])))
    if m := (
        found(r"What is the (colour) of (.+)\?")
        or found(r"(?:What|Which) (colour|shape|size|texture) (?:is|does) (.+?)(?: have)?\?")
    ):
        return only(objects, m[2])[m[1]]
    if m := (found(r"Is (.+) (small) or large\?") or found(r"Is (.+) (plain), striped or dotted\?")):
        return only(objects, m[1])["size" if m[2] == "small" else "texture"]
    if m := (
        found(r"Do (.+) and (.+) (?:have|share) the same (.+)\?")
        or found(r"Are (.+) and (.+) the same (.+)\?")
    ):
        return yes(only(objects, m[1])[m[3]] == only(objects, m[2])[m[3]])
    if m := found(r"(?:Which|What) is (larger|smaller)(?:,|:) (.+) or (.+)\?"):
        wanted = "large" if m[1] == "larger" else "small"
        (answer,) = [ref for ref in (m[2], m[3]) if only(objects, ref)["size"] == wanted]
        return answer
    if m := found(r"Are there more (.+) than (.+)\?"):
        one, other = len(matching(objects, m[1])), len(matching(objects, m[2]))
        assert one != other
        return yes(one > other)
    if m := (found(r"Where is (.+) relative to (.+)\?")):
        return side(only(objects, m[1]), only(objects, m[2]))
    if m := (found(r"On which side of (.+) is (.+)\?")):
        return side(only(objects, m[2]), only(objects, m[1]))
    if m := found(r"(?:What|Which object) is (left|right|above|below)(?: of)? (the .+)\?"):
        it = only(objects, m[2])
        return [item for item in objects if item is not it and side(item, it) == m[1]]
    if m := found(r"(?:Is|Does) (.+?)(?: lie)? (left|right|above|below)(?: of)? (.+)\?"):
        truth = side(only(objects, m[1]), only(objects, m[3]))
        assert truth in (m[2], OPPOSITE[m[2]])
        return yes(truth == m[2])
    assert found(r"(What|Which) (word|number) (is printed|can be read)\?|What is written in the picture\?"), (
        question
    )
    assert ("number" in question) <= text.isdigit()
    assert ("word" in question) <= text.isalpha()
    return text


def plain_objects(item):
    keys = ("size", "texture", "colour", "shape")
    return [
        {**{key: getattr(t, key) for key in keys}, "words": [getattr(t, key) for key in keys], "box": t.box}
        for t in item.layout.things
    ]


def check_answers(item):
    objects = plain_objects(item)
    for asked in item.questions:
        answer = solve(asked.question, objects, item.layout.print.text)
        if isinstance(answer, list):
            assert len(answer) == 1, asked
            assert only(objects, asked.answer) is answer[0], asked
            continue
        assert answer == asked.answer, (asked, objects)
        assert asked.kind in KINDS
