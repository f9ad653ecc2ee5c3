"""The tasks: what they count, with answers that are known beforehand; and loss, ranks and hits recomputed."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from smoljax.data.mappings import find_mapping
from smoljax.data.records import Box, Record, ask
from smoljax.data.sources import MappedSource
from smoljax.embedding import embed_images, embed_texts
from smoljax.errors import SmoljaxError, UsageError
from smoljax.evaluation.config import EvalConfig
from smoljax.evaluation.run import TASKS, check_task
from smoljax.evaluation.tasks import ask as asking
from smoljax.evaluation.tasks import grounding as grounding_task
from smoljax.evaluation.tasks.grounding import grounding
from smoljax.evaluation.tasks.loss import loss
from smoljax.evaluation.tasks.retrieval import retrieval
from smoljax.evaluation.tasks.vqa import vqa
from smoljax.generation.options import Generation
from smoljax.grounding import relevance

QUICK = EvalConfig(draws=200)


def picture(seed, size=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def source_of(records):
    return MappedSource(
        "made", len(records), lambda i: records[i], find_mapping(lambda record: record, "made", {})
    )


@pytest.fixture
def scripted(monkeypatch, tiny_vlm):
    """Makes the model say what a function of (item, question) says."""

    def script(say):
        class Scripted:
            def __init__(self, vlm, max_new_tokens, **options):
                pass

            def answers(self, items, unfit=None):
                encode = tiny_vlm.require_processor().tokenizer.encode
                for item in items:
                    yield item, [Generation(encode(" " + say(item, q)), "stop") for q in item.questions]

        monkeypatch.setattr(asking, "Answerer", Scripted)

    return script


def scene_record(index, kinds, answers, unseen=False):
    talks = tuple(ask(f"{kind} {index}?", answer) for kind, answer in zip(kinds, answers, strict=True))
    meta = {"kinds": tuple(kinds), "unseen_pairs": (unseen,) * len(kinds)}
    return Record(f"r{index}", (picture(index),), talks, meta=meta)


def test_vqa_counts_by_kind(tiny_vlm, scripted):
    records = [
        scene_record(0, ["existence", "reading"], ["yes", "TEN"]),
        scene_record(1, ["existence", "reading", "caption"], ["no", "CAT", "A circle."]),
        scene_record(2, ["existence"], ["yes"], unseen=True),
        scene_record(3, ["existence"], ["no"]),
    ]
    scripted(lambda item, question: {"reading 0?": "10", "reading 1?": "cat"}.get(question.text, "Yes."))
    result = vqa(tiny_vlm, source_of(records), QUICK)
    values = {name: (found.value, found.n) for name, found in result.metrics.items()}
    assert values == {
        "exact": (4 / 6, 6),  # "10" is TEN in VQA's normal form …
        "soft": (4 / 6, 6),
        "reading": (1 / 2, 2),  # … and not what stands there
        "exact/existence": (2 / 4, 4),
        "exact/reading": (1, 2),
        "exact/unseen_pair": (1, 1),
    }
    assert all(found.low <= found.value <= found.high for found in result.metrics.values())
    assert result.predictions[1] == {
        "id": "r0",
        "question": "reading 0?",
        "kind": "reading",
        "prediction": "10",
        "answers": ["TEN"],
        "exact": 1.0,
        "soft": 1.0,
        "unseen_pair": False,
        "finish_reason": "stop",
    }
    limited = vqa(tiny_vlm, source_of(records), dataclasses.replace(QUICK, limit=2, kinds=("reading",)))
    assert set(limited.metrics) == {"exact", "soft", "reading", "exact/reading"}
    assert limited.n == 2
    with pytest.raises(UsageError, match="no question of kind colour"):
        vqa(tiny_vlm, source_of(records), dataclasses.replace(QUICK, kinds=("colour",)))


def test_objects_are_the_six_kinds_together(tiny_vlm, scripted):
    kinds = ["existence", "count", "colour", "shape", "size", "texture", "relation"]
    records = [scene_record(0, kinds, ["a"] * 7), scene_record(1, kinds, ["b"] * 7)]
    scripted(lambda item, question: "a" if question.kind in ("colour", "relation") else "b")
    result = vqa(tiny_vlm, source_of(records), QUICK)
    assert result.metrics["exact/objects"].value == pytest.approx(6 / 12)
    assert result.metrics["exact/objects"].n == 12
    assert result.metrics["exact"].value == 0.5


def test_records_about_one_picture_are_drawn_together(tiny_vlm, scripted, tmp_path):
    for index in range(8):
        picture(index).save(tmp_path / f"{index}.png")
    talk = (ask("Well?", "yes"),)
    records = [Record(f"r{i}", (tmp_path / f"{i // 5}.png",), talk) for i in range(40)]
    scripted(lambda item, question: "yes" if int(item.id[1:]) < 20 else "no")
    together = vqa(tiny_vlm, source_of(records), QUICK).metrics["exact"]
    apart = [dataclasses.replace(record, meta={"picture": record.id}) for record in records]
    alone = vqa(tiny_vlm, source_of(apart), QUICK).metrics["exact"]
    assert (together.value, alone.value) == (0.5, 0.5)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_blind_shows_grey(tiny_vlm, scripted):
    records = [scene_record(0, ["k"], ["yes"])]
    scripted(lambda item, question: "yes" if item.images[0].getcolors(2) else "no")
    assert vqa(tiny_vlm, source_of(records), QUICK).metrics["exact"].value == 0
    assert (
        vqa(tiny_vlm, source_of(records), dataclasses.replace(QUICK, blind=True)).metrics["exact"].value == 1
    )


def test_grounding_reads_boxes(tiny_vlm, scripted, monkeypatch):
    monkeypatch.setattr(grounding_task, "location_count", lambda tokenizer: 8)
    boxes = (Box("the cat", (4, 4, 20, 20)), Box("the dog", (0, 0, 8, 8)), Box("the cow", (0, 0, 8, 8)))
    said = {
        "Locate the cat.": "<loc_1><loc_1><loc_4><loc_5>",  # bin centres of 8 × 4 px: (6, 6, 18, 22)
        "Locate the dog.": "there <loc_7><loc_7><loc_7><loc_7>",
        "Locate the cow.": "no idea",
    }
    scripted(lambda item, question: said[question.text])
    record = Record("r", (picture(0),), (), boxes=boxes)
    result = grounding(tiny_vlm, source_of([record]), dataclasses.replace(QUICK, pointing=0))
    overlap = (12 * 14) / (16 * 16 + 12 * 16 - 12 * 14)
    values = {name: found.value for name, found in result.metrics.items()}
    assert values == pytest.approx({"iou@0.5": 1 / 3, "mean_iou": overlap / 3, "answered": 2 / 3})
    assert result.predictions[0]["predicted_box"] == [6, 6, 18, 22]
    with pytest.raises(SmoljaxError, match="no boxes"):
        grounding(tiny_vlm, source_of([dataclasses.replace(record, boxes=())]), QUICK)


@pytest.mark.slow
def test_the_pointing_game_explains_the_model_s_own_answer(tiny_vlm):
    records = [Record(f"r{i}", (picture(i),), (), boxes=(Box("the cat", (0, 0, 16, 32)),)) for i in range(3)]
    config = dataclasses.replace(QUICK, pointing=2, split=False, max_new_tokens=4)
    result = grounding(tiny_vlm, source_of(records), config)
    assert (result.metrics["pointing"].n, result.n) == (2, 3)
    assert set(result.metrics) == {"pointing"}  # a vocabulary without location tokens
    batch = tiny_vlm.prepare(prompt="Locate the cat.", images=[picture(0)], split=False)
    answer = tiny_vlm.generator.generate(batch.arrays(), 4)[0]
    ids = [
        token for token in answer.token_ids if token not in tiny_vlm.generator.stop_ids
    ] or answer.token_ids
    x, _ = relevance(tiny_vlm, batch, ids).peak(32, 32)
    assert result.predictions[0]["pointing"] == float(x < 16)
    with pytest.raises(SmoljaxError, match="no location tokens"):
        grounding(tiny_vlm, source_of(records), dataclasses.replace(config, pointing=0))


def test_retrieval_ranks_by_the_vectors(tiny_vlm):
    records = [Record(f"r{i}", (picture(i),), (), caption=f"a cat of {i}") for i in range(5)]
    result = retrieval(tiny_vlm, source_of(records), dataclasses.replace(QUICK, split=False, batch_size=5))
    images = embed_images(tiny_vlm, [record.images[0] for record in records], 5, split=False)
    scores = images @ embed_texts(tiny_vlm, [record.caption for record in records], 5).T
    for name, table in (("image_to_text", scores), ("text_to_image", scores.T)):
        places = [(row > row[i]).sum() for i, row in enumerate(table)]
        assert [line[name]["rank"] - 1 for line in result.predictions] == places
        assert result.metrics[f"{name}/R@1"].value == pytest.approx(np.mean(np.array(places) == 0))
        assert result.metrics[f"{name}/R@5"].value == 1
    with pytest.raises(SmoljaxError, match="at least two"):
        retrieval(
            tiny_vlm, source_of(records), dataclasses.replace(QUICK, limit=1, split=False, batch_size=5)
        )


def test_loss_is_that_of_the_logits(tiny_vlm):
    """Two conversations about one picture, read side by side, against each on its own."""
    answers = ["a cat", "on the mat, of course"]
    talks = tuple(ask(f"What {i}?", answer) for i, answer in enumerate(answers))
    records = [Record("both", (picture(0),), talks), Record("one", (picture(1),), talks[:1])]
    config = dataclasses.replace(QUICK, split=False)
    result = loss(tiny_vlm, source_of(records), config)
    want = np.zeros((2, 2))
    for row, record in enumerate(records):
        for talk in record.conversations:
            batch = tiny_vlm.prepare(
                messages=list(talk), images=list(record.images), split=False, add_generation_prompt=False
            )
            scores = np.asarray(tiny_vlm.logits(batch.arrays())[0], np.float64)
            ids = batch.input_ids[0]
            tail = tiny_vlm.require_processor().tokenizer.encode(
                f" {talk[1]['content'][0]['text']}<end_of_utterance>\n"
            )
            assert ids[-len(tail) :].tolist() == tail
            for place in range(len(ids) - len(tail), len(ids) - 1):  # not the newline at the end
                row_scores = scores[place - 1]
                want[row] += [np.logaddexp.reduce(row_scores) - row_scores[ids[place]], 1]
    assert [line["tokens"] for line in result.predictions] == want[:, 1].tolist()
    np.testing.assert_allclose(
        [line["loss"] for line in result.predictions], want[:, 0] / want[:, 1], rtol=1e-4
    )
    total = want.sum(axis=0)
    assert result.metrics["loss"].value == pytest.approx(total[0] / total[1], rel=1e-4)
    assert result.metrics["perplexity"].value == pytest.approx(np.exp(total[0] / total[1]), rel=1e-3)
    assert result.metrics["loss"].n == total[1]


def test_options_are_checked():
    with pytest.raises(UsageError, match="no task 'vqa2'; known: vqa, caption"):
        check_task("vqa2", QUICK)
    with pytest.raises(UsageError, match="kinds belong to the task vqa"):
        check_task("loss", EvalConfig(kinds=("colour",)))
    with pytest.raises(UsageError, match="limit is 0"):
        EvalConfig(limit=0)
    assert set(TASKS) == {"vqa", "caption", "retrieval", "grounding", "loss"}
