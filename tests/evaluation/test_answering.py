"""Answers in batches, pictures read once, are those of `VLM.generate`."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from smoljax.data.records import ask
from smoljax.errors import SmoljaxError, UsageError
from smoljax.evaluation.answering import Answerer
from smoljax.evaluation.samples import Item, Question
from smoljax.nn.stacking import stack_layers
from smoljax.vlm import VLM

WORDS = ("what is it", "where to", "how many", "is it red or blue", "is it left of the red one")


def picture(seed, width=40, height=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def make_item(seed, pictures=1, questions=4, **size):
    rng = np.random.default_rng(seed)
    texts = [f"{rng.choice(WORDS)}?" for _ in range(questions)]
    asked = tuple(Question(ask(text, "", pictures)[:1], ("x" * rng.integers(1, 9),)) for text in texts)
    return Item(f"r{seed}", tuple(picture((seed, i), **size) for i in range(pictures)), asked)


def texts(vlm, items, max_new_tokens, **options):
    found = Answerer(vlm, max_new_tokens, **options).answers(items)
    return [[vlm.text_of(generation) for generation in answers] for _, answers in found]


def answers(vlm, items):
    return [answer for _, found in Answerer(vlm, 8, split=False).answers(items) for answer in found]


def one_by_one(vlm, items, **options):
    """What the product says, each question a whole prompt of its own."""
    samples = [{"messages": q.messages, "images": item.images} for item in items for q in item.questions]
    found = iter(vlm.generate_batch(samples, max_new_tokens=8, **options))
    return [[next(found) for _ in item.questions] for item in items]


def test_answers_are_those_of_generate(tiny_vlm):
    items = [
        make_item(0, questions=4),
        make_item(1, questions=1, width=90, height=30),
        make_item(3, pictures=0, questions=2),  # words alone
        make_item(4, pictures=2, questions=2),
        make_item(5, questions=0),
    ]
    found = texts(tiny_vlm, items, 8, split=False)
    assert found == one_by_one(tiny_vlm, items, split=False)
    assert len({answer for answers in found for answer in answers}) > 4  # no constant


def test_rows_of_a_batch_and_tiles_of_a_picture_change_nothing(tiny_vlm):
    items = [make_item(6, questions=2), make_item(7, questions=1, width=90, height=30)]
    want = one_by_one(tiny_vlm, items, longest_edge=64)
    assert texts(tiny_vlm, items, 8, longest_edge=64, rows=1) == want


@pytest.mark.slow
def test_a_rounded_cache_is_continued(tiny_vlm):
    """A picture's keys and their scales are read once, and every question goes on behind them."""
    items = [make_item(6, questions=2)]
    rounded = dataclasses.replace(tiny_vlm, config=tiny_vlm.config.with_compute(cache="int8"))
    assert texts(rounded, items, 8, split=False) == one_by_one(rounded, items, split=False)


def test_a_stop_token_ends_an_answer(tiny_vlm):
    items = [make_item(0), make_item(1)]
    free = answers(tiny_vlm, items)
    stop = next(answer for answer in free if answer.finish_reason == "length").token_ids[2]
    processor = tiny_vlm.require_processor()
    ends = {stop, *processor.stop_ids}
    config = dataclasses.replace(processor.config, eos_token_ids=(stop, *processor.stop_ids))
    stopped = VLM(tiny_vlm.config, tiny_vlm.params, type(processor)(config, processor.tokenizer, {}))
    for answer, whole in zip(answers(stopped, items), free, strict=True):
        places = [place for place, token in enumerate(whole.token_ids) if token in ends]
        assert answer.token_ids == whole.token_ids[: places[0] + 1 if places else 8]
        assert answer.finish_reason == ("stop" if places else "length")


@pytest.mark.slow
def test_scanned_layers_answer_alike(tiny_vlm):
    items = [make_item(0), make_item(1)]
    scanned = VLM(
        tiny_vlm.config.with_compute(scan_layers=True),
        stack_layers(tiny_vlm.params),
        tiny_vlm.require_processor(),
    )
    assert texts(scanned, items, 8, split=False) == texts(tiny_vlm, items, 8, split=False)


def test_bad_items_are_named(tiny_vlm):
    with pytest.raises(SmoljaxError, match=r"record r9: .*nowhere\.png: no such picture"):
        texts(tiny_vlm, [dataclasses.replace(make_item(9), images=("nowhere.png",))], 8)
    with pytest.raises(UsageError, match=r"record r9: .* positions"):
        texts(tiny_vlm, [make_item(9)], 1020)
    broken = VLM(
        tiny_vlm.config, jax.tree.map(lambda leaf: leaf * np.nan, tiny_vlm.params), tiny_vlm.processor
    )
    with pytest.raises(SmoljaxError, match="not finite"):
        texts(broken, [make_item(0)], 8, split=False)
