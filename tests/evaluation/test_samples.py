"""From records to questions, accepted answers and references."""

import io

import numpy as np
import pytest
from PIL import Image

from smoljax.data.records import Box, Record, ask, check_conversation
from smoljax.errors import SmoljaxError, UsageError
from smoljax.evaluation.samples import (
    blinded,
    caption_item,
    check_kinds,
    grounding_item,
    pair_of,
    scenes_everything,
    vqa_item,
)


def png(width=96, height=96):
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def scene():
    """As TFDS gives it: sequences of dicts are dicts of arrays, texts are bytes."""
    return {
        "id": b"test-7",
        "image": png(),
        "captions": np.array([b"A small red circle.", b"There is a small red circle.", b"Small red circle."]),
        "facts": np.array([b"small plain red circle", b"large plain blue star", b"background:sand"]),
        "objects": {
            "reference": np.array([b"the circle", b""]),
            "box": np.array([[3, 6, 48, 96], [0, 0, 10, 10]], np.int32),
        },
        "questions": {
            "question": np.array([b"Is there a circle?", b"What is left of the star?"]),
            "answer": np.array([b"yes", b"the red circle"]),
            "kind": np.array([b"existence", b"relation"]),
            "unseen_pair": np.array([False, True]),
        },
    }


def test_everything_of_a_scene_is_asked(scene):
    record = scenes_everything(scene)
    for talk in record.conversations:
        check_conversation(talk, 1, record.id)
    assert record.meta["kinds"] == ("caption", "existence", "relation", "locate")
    item = vqa_item(record)
    assert [(q.text, q.accepted, q.kind, q.unseen_pair) for q in item.questions] == [
        ("Is there a circle?", ("yes",), "existence", False),
        ("What is left of the star?", ("the red circle",), "relation", True),
    ]
    assert [message["role"] for message in item.questions[0].messages] == ["user"]
    assert [q.kind for q in vqa_item(record, {"relation"}).questions] == ["relation"]

    item = caption_item(record)
    (question,) = item.questions
    assert question.text == "Describe the picture."
    assert question.accepted == ("A small red circle.", "There is a small red circle.", "Small red circle.")
    assert "background:sand" in item.facts

    (question,) = grounding_item(record).questions  # the other object has no phrase of its own
    assert (question.text, question.box) == ("Locate the circle.", (3, 6, 48, 96))
    located = record.conversations[-1]
    assert located[0]["content"][-1]["text"] == question.text  # as in training
    assert located[1]["content"][0]["text"] == "<loc_1><loc_2><loc_16><loc_31>"
    assert pair_of(record)[1] == "A small red circle."


def test_a_vocabulary_without_places_is_not_asked_for_their_tokens(scene):
    record = scenes_everything(scene, locations=0)
    assert "locate" not in record.meta["kinds"]
    assert len(grounding_item(record).questions) == 1


def test_chats_of_a_file():
    first = (
        *ask("What is it?", "a cat"),
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    )
    record = Record("r", (png(),), (ask("Where?", "here"), first), answers=("yes", "yep"), meta={"kind": "k"})
    item = vqa_item(record)
    assert [(q.text, q.accepted, q.kind) for q in item.questions] == [
        ("Where?", ("here",), "k"),
        ("Sure?", ("yes", "yep"), "k"),
    ]
    assert len(item.questions[1].messages) == 3  # the conversation so far
    assert vqa_item(record, split_by="nothing").questions[0].kind == ""
    assert caption_item(Record("r", (), (ask("Tell me.", "So it is.", 0),))).questions[0].accepted == (
        "So it is.",
    )
    named = Record("r", (png(),), (), caption="A cat.", boxes=(Box("the cat", (0, 0, 5, 5)),))
    (question,) = caption_item(named).questions
    assert (question.text, question.accepted) == ("Describe the picture.", ("A cat.",))
    assert pair_of(named)[1] == "A cat."
    assert pair_of(record)[1] == "yes"
    with pytest.raises(SmoljaxError, match="record r: no description"):
        caption_item(Record("r", (png(),), ()))
    with pytest.raises(SmoljaxError, match="record r: no picture"):
        pair_of(Record("r", (), (), caption="A cat."))
    with pytest.raises(SmoljaxError, match="record r: the assistant answers before"):
        vqa_item(Record("r", (), ((first[1],),)))


def test_splitting_by_another_key_asks_no_description(scene):
    record = scenes_everything(scene)
    by_kind, by_pair = vqa_item(record), vqa_item(record, split_by="unseen_pair")
    assert [q.text for q in by_pair.questions] == [q.text for q in by_kind.questions]
    assert {q.kind for q in by_pair.questions} <= {"True", "False"}


def test_blinded_pictures_are_grey_and_of_the_same_size():
    (grey,) = blinded([png(30, 20)])
    assert grey.size == (30, 20)
    assert grey.getcolors() == [(600, (128, 128, 128))]


def test_a_kind_that_never_occurs_is_an_error():
    check_kinds({"a"}, {"a", "b", ""})
    with pytest.raises(UsageError, match=r"no question of kind c in the data; its kinds: a, b"):
        check_kinds({"a", "c"}, {"a", "b", ""})
