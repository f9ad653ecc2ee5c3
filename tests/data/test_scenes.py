"""The scenes dataset: everything said of a picture is worked out again here from its objects and boxes."""

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scenes_solver import check_answers, matching, only, plain_objects, side

from smoljax.data.scenes import parse_caption, scene
from smoljax.data.scenes.blind import template
from smoljax.data.scenes.glyphs import _font, _stroke, glyph
from smoljax.data.scenes.paint import RGB
from smoljax.data.scenes.vocabulary import (
    CHARACTERS,
    COLOURS,
    LEXICON,
    SEEN_WORDS,
    SHAPES,
    UNSEEN_PAIRS,
    UNSEEN_WORDS,
)
from smoljax.errors import UsageError


@pytest.fixture(scope="module")
def train():
    return [scene("train", index) for index in range(600)]


@pytest.fixture(scope="module")
def compositional():
    return [scene("test_compositional", index) for index in range(300)]


def test_answers_are_true(train, compositional):
    for item in train + compositional:
        check_answers(item)


def test_captions_read_back_as_the_facts(train, compositional):
    for item in train + compositional:
        assert len(item.captions) == len(set(item.captions)) == 3
        for caption in item.captions:
            parsed = parse_caption(caption)
            assert parsed.facts() == list(item.facts), caption
            assert list(parsed.objects) == [tuple(o["words"]) for o in plain_objects(item)]
            assert parsed.text == item.layout.print.text
            assert len(caption.split()) <= 60


def test_facts_follow_from_the_boxes(train):
    for item in train:
        objects = plain_objects(item)
        middles = [(o["box"][0] + o["box"][2]) / 2 for o in objects]
        assert middles == sorted(middles)
        stated = [
            f"{a['colour']} {a['shape']}|{word}{' of' if word in ('left', 'right') else ''}|{b['colour']} {b['shape']}"
            for a, b in itertools.pairwise(objects)
            if (word := side(a, b)) != "unclear"
        ]
        assert [fact for fact in item.facts if "|" in fact] == stated


def test_a_loose_caption_is_read():
    parsed = parse_caption("I see two Large RED circles and a blue square, on the grass; the word SUN.")
    assert parsed.objects == (("large", "plain", "red", "circle"), ("", "plain", "blue", "square"))
    assert (parsed.text, parsed.background, parsed.relations) == ("SUN", "grass", ())
    assert parse_caption("").facts() == []
    # A printed word is no description.
    assert parse_caption('The word "SNOW" is on a red star.').background == ""


def test_references_are_unique_and_shortest(train):
    for item in train[:200]:
        example, objects = item.example(), plain_objects(item)
        for entry, own in zip(example["objects"], objects, strict=True):
            if not entry["reference"]:
                assert objects.count({**own}) >= 1
                assert sum(o["words"] == own["words"] for o in objects) > 1
                continue
            assert only(objects, entry["reference"]) is own
            words = entry["reference"].split()[1:]
            for word in set(words) - {own["colour"], own["shape"]}:
                assert len(matching(objects, " ".join(w for w in words if w != word))) > 1


def test_unseen_pairs_and_words_stay_out_of_training(train, compositional):
    for item in [*train, *(scene(split, i) for split in ("validation", "test") for i in range(100))]:
        said = " ".join((*item.captions, *(f"{q.question} {q.answer}" for q in item.questions)))
        assert not any(f"{colour} {shape}" in said for colour, shape in UNSEEN_PAIRS)
        assert not any(thing.pair in UNSEEN_PAIRS for thing in item.layout.things)
        assert item.layout.print.text not in UNSEEN_WORDS
        assert not any(asked.unseen_pair for asked in item.questions)
    for item in compositional:
        assert any(thing.pair in UNSEEN_PAIRS for thing in item.layout.things)
        assert any(asked.unseen_pair for asked in item.questions)
    words = [item.layout.print.text for item in compositional if item.layout.print.text.isalpha()]
    assert 0.35 < sum(word in UNSEEN_WORDS for word in words) / len(words) < 0.65
    assert sorted(c for c, _ in UNSEEN_PAIRS) == sorted(COLOURS)
    assert sorted(s for _, s in UNSEEN_PAIRS) == sorted(SHAPES)
    assert len(set(LEXICON)) == len(LEXICON) == len(SEEN_WORDS) + len(UNSEEN_WORDS)


def test_unseen_pair_marks_what_rests_on_one(compositional):
    pairs = {f"{colour} {shape}" for colour, shape in UNSEEN_PAIRS}
    for item in compositional:
        objects = plain_objects(item)
        for asked in item.questions:
            if any(pair in asked.question + asked.answer for pair in pairs):
                assert asked.unseen_pair, asked
            if asked.kind in ("colour", "shape", "size", "texture"):
                ref = re.search(r"the (?!colour of)[a-z ]+?(?= have| small or| plain,|\?)", asked.question)
                own = only(objects, ref[0])
                assert asked.unseen_pair == ((own["colour"], own["shape"]) in UNSEEN_PAIRS), asked
            if asked.kind == "reading":
                assert not asked.unseen_pair


def test_no_answer_is_a_habit(train):
    answers = defaultdict(Counter)
    for item in train:
        for asked in item.questions:
            answers[template(asked.question)[0]][asked.answer] += 1
            answers[asked.kind][asked.answer] += 1
    for name in ("existence", "count", "colour", "shape", "size", "texture", "comparison", "relation"):
        counts = answers[name]
        share = counts.most_common(1)[0][1] / counts.total()
        limit = {"existence": 0.55, "size": 0.65, "texture": 0.47, "count": 0.4, "comparison": 0.5}
        assert share < limit.get(name, 0.25), (name, counts)
    for name, counts in answers.items():
        if set(counts) == {"yes", "no"} and counts.total() >= 100:
            # Five standard deviations of a fair coin.
            assert abs(counts["yes"] / counts.total() - 0.5) < 2.5 / counts.total() ** 0.5, (name, counts)


def test_negatives_are_near(train):
    near = far = 0
    for item in train:
        objects = plain_objects(item)
        for asked in item.questions:
            m = re.search(rf" ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", asked.question)
            if asked.kind == "existence" and asked.answer == "no" and m and len(objects) > 2:
                parts = bool(matching(objects, m[1])) + bool(matching(objects, m[2]))
                near, far = near + (parts == 2), far + (parts == 0)
    assert far == 0
    assert near > 400


def test_pictures_have_the_colours_the_labels_say(train):
    right = total = 0
    for item in train[:300]:
        image = item.paint()[0]
        for thing in item.layout.things:
            if thing.texture == "plain" and thing.shape != "ring":
                x, y = (int(value) for value in thing.middle)
                seen = np.median(image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), 0)
                nearest = min(RGB, key=lambda name: np.abs(np.subtract(RGB[name], seen)).sum())
                right, total = right + (nearest == thing.colour), total + 1
    assert total > 200
    assert right / total > 0.97


def test_cells_lie_in_the_boxes(train):
    for item in train[:150]:
        cells = item.paint()[1]
        for k, thing in enumerate(item.layout.things, 1):
            rows, columns = np.nonzero(cells == k)
            assert len(rows), thing
            x0, y0, x1, y1 = thing.box
            assert y0 // 8 <= rows.min() <= rows.max() <= (y1 - 1) // 8
            assert x0 // 8 <= columns.min() <= columns.max() <= (x1 - 1) // 8
        assert cells.max() <= len(item.layout.things)


def test_boxes_are_tight(train):
    from smoljax.data.scenes.draws import Draws
    from smoljax.data.scenes.paint import _paint_thing

    for item in train[:80]:
        for thing in item.layout.things:
            alpha = _paint_thing(np.zeros((96, 96, 3), np.float32), thing, Draws(1))
            rows, columns = np.nonzero(alpha > 0.3)
            drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert np.abs(np.subtract(drawn, thing.box)).max() <= 1, (thing, drawn)
            assert min(thing.box) >= 0
            assert max(thing.box) <= 96


def test_nothing_overlaps(train):
    for item in train:
        boxes = [thing.box for thing in item.layout.things]
        if item.layout.print.text:
            boxes.append(item.layout.print.box)
        taken = np.zeros((96, 96), np.int32)
        for x0, y0, x1, y1 in boxes:
            assert x0 < x1
            assert y0 < y1
            taken[y0:y1, x0:x1] += 1
        assert taken.max() == 1


def test_character_cells_spell_the_text(train):
    printed = [item for item in train if item.layout.print.text]
    assert 0.38 < len(printed) / len(train) < 0.52
    for item in train[:300]:
        cells = item.example()["characters"]
        text = item.layout.print.text
        assert set(cells[cells > 0]) <= {CHARACTERS.index(c) + 1 for c in text}
        if not text:
            assert cells.max() == 0
            continue
        # Read column by column the cells give the text; a narrow letter may own no cell, two alike run together.
        columns = [column[column > 0][0] for column in cells.T if column.any()]
        read = [CHARACTERS[c - 1] for c, before in zip(columns, [0, *columns], strict=False) if c != before]
        letters = iter(text)
        assert all(letter in letters for letter in read)
        assert len(read) >= len(text) - 2


def test_letters_fill_the_widths_written_down():
    """A FreeType that draws other letters than the widths were measured on would cut them or leave gaps."""
    for height in range(11, 16):
        for character in CHARACTERS:
            ink = glyph(character, height)
            assert ink.shape[0] == 3 * height
            assert ink.max() == 255
            left, _, right, _ = _font(height).getbbox(character, stroke_width=_stroke(height))
            assert ink.shape[1] - 3 < right - left <= ink.shape[1], (character, height)


def test_a_scene_is_a_function_of_its_arguments():
    one, again = scene("test", 3), scene("test", 3)
    assert one == again
    assert one.example()["image"] == again.example()["image"]
    assert scene("test", 4).layout != one.layout
    assert scene("train", 3).layout != one.layout
    assert scene("test", 3, seed=1).layout != one.layout


def test_unknown_split_and_config():
    from smoljax.data.scenes import open_scenes

    with pytest.raises(UsageError, match="no split 'dev'"):
        scene("dev", 0)
    with pytest.raises(UsageError, match="0 or more"):
        scene("test", -1)
    with pytest.raises(UsageError, match="no config 'huge'"):
        open_scenes("huge")
