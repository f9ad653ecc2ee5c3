"""The data of easy-vqa as records: all of its author's questions, nothing shared between splits, what a row holds."""

import json

import numpy as np
import pytest

pytest.importorskip("easy_vqa")

from experiments.easy_vqa import prepare as module
from experiments.easy_vqa.config import config
from experiments.easy_vqa.prepare import kind_of, path_of, prepare
from experiments.easy_vqa.run import page, wrong
from smoljax.data.pipeline import make_iterator
from smoljax.data.sources import open_source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.samples import open_records, vqa_item
from smoljax.processing.processor import Processor


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare()


@pytest.fixture(scope="module")
def recipe(files):
    return config()


def lines(split):
    return [json.loads(line) for line in path_of(split).read_text().splitlines()]


def test_every_question_of_the_author_is_asked_and_no_picture_is_in_two_splits(files):
    import easy_vqa

    assert files["test"] == {"pictures": 1000, "questions": 9673}
    assert files["train"]["questions"] + files["validation"]["questions"] == 38_575
    pictures = {split: {line["images"][0] for line in lines(split)} for split in files}
    assert sum(map(len, pictures.values())) == len(set.union(*pictures.values())) == 5000
    source = open_records(str(path_of("test")))
    asked = []
    for index in range(len(source)):
        item = vqa_item(source[index])
        number = int(item.id.removeprefix("test-"))
        assert item.images[0].name == f"{number}.png"
        asked += [(question.text, question.accepted[0], number) for question in item.questions]
        assert {question.kind for question in item.questions} <= {"existence", "absence", "colour", "shape"}
    assert sorted(asked) == sorted(zip(*easy_vqa.get_test_questions(), strict=True))


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("is there a red shape?", "existence"),
        ("does the image contain a circle?", "existence"),
        ("is there not a circle in the image?", "absence"),
        ("is no brown shape present?", "absence"),
        ("what color is the triangle?", "colour"),
        ("what is the color of the shape?", "colour"),
        ("what is the blue shape?", "shape"),
        ("what shape is in the image?", "shape"),
    ],
)
def test_kinds(question, kind):
    assert kind_of(question) == kind


def test_a_question_of_another_form_is_refused():
    with pytest.raises(SmoljaxError, match="how many"):
        kind_of("how many shapes are there?")


def test_another_version_of_the_package_is_refused(monkeypatch):
    monkeypatch.setitem(module.QUESTIONS, "test", 5)
    with pytest.raises(SmoljaxError, match=r"9673 test questions, but version 1\.0 has 5"):
        prepare()


def test_training_draws_anew_each_epoch_and_validation_never_mirrors(recipe):
    (train,) = recipe.data.sources
    source = open_source(train.data, train.mapping, **train.options)
    line = open_source(train.data)[0]
    texts = [
        tuple(talk[0]["content"][1]["text"] for talk in source.read(0, epoch).conversations)
        for epoch in range(8)
    ]
    assert len(set(texts)) > 1
    assert {tuple(sorted(text)) for text in texts} == {
        tuple(sorted(talk[0]["content"][1]["text"] for talk in line.conversations))
    }
    assert source.read(0, 3).conversations == source.read(0, 3).conversations
    widths = {
        np.asarray(image).tobytes()
        for epoch in range(8)
        for image in map(_opened, source.read(0, epoch).images)
    }
    assert len(widths) == 2
    (held,) = recipe.validation.sources
    validation = open_source(held.data, held.mapping, **held.options)
    assert all(
        not hasattr(validation.read(index).images[0], "size") for index in range(8)
    )  # paths, untouched


def _opened(image):
    from smoljax.processing.images import open_image

    return open_image(image)


def test_kinds_follow_their_conversations(recipe):
    (train,) = recipe.data.sources
    record = open_source(train.data, train.mapping, **train.options).read(4, 2)
    for talk, kind in zip(record.conversations, record.meta["kinds"], strict=True):
        assert kind_of(talk[0]["content"][1]["text"]) == kind


def test_a_row_holds_one_picture_and_several_of_its_questions(recipe):
    processor = Processor.from_folder("experiments/scenes/processor")
    batches = make_iterator(recipe.data, processor, 0)
    batch = next(batches)
    batches.close()
    assert batch["pixel_values"].shape == (16, 1, 3, 96, 96)
    assert batch["branch_ids"].max(axis=1).mean() > 4
    row, learned = batch["input_ids"][0], batch["loss_mask"][0]
    said = processor.tokenizer.decode(row[learned].tolist())
    words = {"yes", "no", "circle", "rectangle", "triangle"}
    words |= {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
    assert set(said.replace("<end_of_utterance>", " ").split()) <= words


def test_the_page_says_what_the_result_holds():
    figure = {"value": 0.996, "low": 0.994, "high": 0.998, "n": 9673}
    names = ("exact", "exact/existence", "exact/absence", "exact/colour", "exact/shape")
    part = {"metrics": dict.fromkeys(names, figure), "letter_by_letter": 0.9955, "wrong": 43}
    counts = {
        "train": {"pictures": 3750, "questions": 36_151},
        "validation": {"pictures": 250, "questions": 2424},
    }
    training = {"seconds": 300.0, "steps": 600, "command": "smoljax train …"}
    result = {"data": counts, "training": training, "machine": {"cores": 2}}
    text = page({**result, "validation": part, "test": part, "test_blind": part})
    assert "| exact | 99.60 % [99.40, 99.80] |" in text
    assert "99.55% of the test answers are right; 43 are wrong" in text
    assert "Training took 5.0 minutes" in text


def test_wrong_answers_are_found_letter_by_letter():
    line = {"id": "a", "question": "q", "kind": "shape", "answers": ["circle"], "exact": 1.0}
    found = wrong([{**line, "prediction": text} for text in ("circle", "a circle")])
    assert [item["prediction"] for item in found] == ["a circle"]
