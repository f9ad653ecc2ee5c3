"""The stream of batches: epochs, hosts, mixtures, and going on exactly where it stopped."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from data_helpers import number_record, number_source, scenes_source

from smoljax.data.config import DataConfig, SourceConfig
from smoljax.data.pipeline import make_iterator, pipeline
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.testing import tiny_processor

CONFIG = DataConfig(
    sources=(SourceConfig("memory"),),
    batch_size=4,
    sequence_length=160,
    max_tiles=5,
    split=False,
    longest_edge=32,
)
PACKED = dataclasses.replace(CONFIG, pack=True, batch_size=2, sequence_length=400, packing_window=3)
PROCESSOR = tiny_processor()


def texts(batch):
    return [PROCESSOR.tokenizer.decode(row) for row in batch["input_ids"]]


def numbers(batch):
    """The numbers of the records in a batch, row by row."""
    return [[int(item) for item in re.findall(r"Number (\d+)\?", text)] for text in texts(batch)]


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def flat(batches):
    return [number for batch in batches for row in numbers(batch) for number in row]


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"patches"}:
            assert np.array_equal(one[name], two[name]), name
        for name in one["patches"]:
            assert np.array_equal(one["patches"][name], two["patches"][name]), name


@pytest.fixture
def open_pipeline():
    """`pipeline`, closed after the test."""
    opened = []

    def open_it(*args, **kwargs):
        opened.append(pipeline(*args, **kwargs))
        return opened[-1]

    yield open_it
    for iterator in opened:
        iterator.close()


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own(open_pipeline):
    batches = take(open_pipeline([number_source(10)], PROCESSOR, CONFIG, seed=1), 10)
    assert all(len(row) == 1 for batch in batches for row in numbers(batch))
    found = flat(batches)
    epochs = [found[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = flat(take(open_pipeline([number_source(10)], PROCESSOR, CONFIG, seed=2), 10))
    assert not {tuple(epoch) for epoch in epochs} & {
        tuple(other[start : start + 10]) for start in range(0, 40, 10)
    }


def test_without_shuffling_the_order_stays(open_pipeline):
    config = dataclasses.replace(CONFIG, shuffle=False)
    assert flat(take(open_pipeline([number_source(10)], PROCESSOR, config), 5)) == [*range(10), *range(10)]


def test_each_epoch_asks_other_questions(open_pipeline):
    config = dataclasses.replace(CONFIG, sequence_length=700, shuffle=False, batch_size=1)
    batches = take(open_pipeline([scenes_source(1, questions=3)], PROCESSOR, config), 6)
    assert len({texts(batch)[0] for batch in batches}) == 6
    again = take(open_pipeline([scenes_source(1, questions=3)], PROCESSOR, config), 6)
    assert_same(batches, again)


@pytest.mark.parametrize("pack", [False, True])
def test_hosts_share_an_epoch(open_pipeline, pack):
    config = PACKED if pack else CONFIG
    found = []
    for shard in range(2):
        iterator = open_pipeline(
            [number_source(90)], PROCESSOR, config, seed=3, shard_index=shard, shard_count=2
        )
        batches = []
        while len(flat(batches)) < 25:
            batches.append(next(iterator))
        assert batches[0]["input_ids"].shape[0] == config.batch_size // 2
        found.append(flat(batches)[:25])
    assert len(set(found[0]) | set(found[1])) == 50  # nothing twice before an epoch is over


def test_hosts_together_make_the_batch_of_one_host(open_pipeline):
    alone = open_pipeline([number_source(12)], PROCESSOR, CONFIG, seed=3)
    hosts = [
        open_pipeline([number_source(12)], PROCESSOR, CONFIG, seed=3, shard_index=shard, shard_count=2)
        for shard in range(2)
    ]
    for _ in range(7):
        assert sorted(flat([next(alone)])) == sorted(flat([next(host) for host in hosts]))


@pytest.mark.parametrize("shards", [1, 2])
def test_sources_are_mixed_by_weight_on_every_host(open_pipeline, shards):
    few = number_source(7)
    many = number_source(50, make=lambda number: number_record(number + 100), name="many")
    config = dataclasses.replace(CONFIG, batch_size=4 * shards)
    for shard in range(shards):
        iterator = open_pipeline(
            [few, many], PROCESSOR, config, [1, 3], seed=0, shard_index=shard, shard_count=shards
        )
        for batch in take(iterator, 20):
            assert sum(number < 100 for number in flat([batch])) == 1


SETTINGS = {
    "unpacked": CONFIG,
    "packed": PACKED,
    "packed, nothing ahead": dataclasses.replace(PACKED, prefetch=0),
    "packed, threads": dataclasses.replace(PACKED, threads=3),
    "unpacked, threads, skipping": dataclasses.replace(CONFIG, threads=2, on_error="skip"),
    "packed, skipping": dataclasses.replace(PACKED, on_error="skip"),
}


def uneven_sources(config):
    """Records of many sizes; with skipping, some that fit no row."""
    too_long = 400 if config.on_error == "skip" else 9

    def make(number):
        return number_record(number, words=too_long if number % 5 == 2 else 1 + number % 7)

    return [
        number_source(23, make=make, on_error=config.on_error),
        number_source(9, make=lambda number: number_record(number + 100, words=2 + number), name="second"),
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_state_goes_on_with_the_next_batch(open_pipeline, name):
    config = SETTINGS[name]
    first = open_pipeline(uneven_sources(config), PROCESSOR, config, [2, 1], seed=5)
    start = first.get_state()
    batches, states = [], []
    for _ in range(14):
        batches.append(next(first))
        states.append(json.dumps(first.get_state()))
    for stop in (0, 3, 9):
        resumed = open_pipeline(uneven_sources(config), PROCESSOR, config, [2, 1], seed=5)
        resumed.set_state(json.loads(states[stop]))
        assert_same(take(resumed, 13 - stop), batches[stop + 1 :])
    first.set_state(json.loads(states[4]))  # back in the middle of a run
    assert_same(take(first, 3), batches[5:8])
    first.set_state(start)
    assert_same(take(first, 2), batches[:2])
    if config.pack:
        assert any(json.loads(state)["stream"]["open"] for state in states)
        assert max(len(row) for batch in batches for row in numbers(batch)) > 1


def test_batches_do_not_depend_on_threads(open_pipeline):
    settings = [SETTINGS[name] for name in ("packed", "packed, nothing ahead", "packed, threads")]
    runs = [take(open_pipeline(uneven_sources(config), PROCESSOR, config, seed=5), 8) for config in settings]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("name", ["unpacked", "packed", "unpacked, threads, skipping"])
def test_advancing_leaves_batches_out(open_pipeline, name):
    config = SETTINGS[name]
    batches = take(open_pipeline(uneven_sources(config), PROCESSOR, config, seed=5), 9)
    late = open_pipeline(uneven_sources(config), PROCESSOR, config, seed=5)
    late.advance(4)
    assert_same(take(late, 3), batches[4:7])
    late.advance(1)
    assert_same(take(late, 1), batches[8:])


def test_a_state_of_other_settings_is_refused(open_pipeline):
    state = open_pipeline([number_source(10)], PROCESSOR, CONFIG, seed=1).get_state()
    with pytest.raises(SmoljaxError, match="the saved state of the data has seed 1, this run has 2"):
        open_pipeline([number_source(10)], PROCESSOR, CONFIG, seed=2).set_state(state)
    with pytest.raises(SmoljaxError, match=r"has records \[10\], this run has \[11\]"):
        open_pipeline([number_source(11)], PROCESSOR, CONFIG, seed=1).set_state(state)
    with pytest.raises(SmoljaxError, match="state of version None"):
        open_pipeline([number_source(10)], PROCESSOR, CONFIG, seed=1).set_state({})


def test_records_without_a_place_are_named_or_skipped_and_counted(open_pipeline):
    def make(number):
        return number_record(number, words=90 if number in (3, 4) else 2)

    strict = open_pipeline([number_source(10, make=make)], PROCESSOR, CONFIG, seed=0)
    with pytest.raises(
        SmoljaxError, match=r"numbers\[([34])\], record record-\1: \d+ tokens .* more than the 160 of a row"
    ):
        take(strict, 3)
    config = dataclasses.replace(CONFIG, on_error="skip")
    lenient = open_pipeline([number_source(10, make=make, on_error="skip")], PROCESSOR, config, seed=0)
    assert sorted(flat(take(lenient, 4))) == sorted([0, 1, 2, 5, 6, 7, 8, 9] * 2)
    (counts,) = lenient.skipped().values()
    assert list(counts.values()) == [2]


def test_fitting_is_a_setting_of_the_stream(open_pipeline):
    config = dataclasses.replace(CONFIG, sequence_length=400, fit=True)
    (batch,) = take(open_pipeline([scenes_source(questions=9)], PROCESSOR, config), 1)
    assert ((batch["segment_ids"] > 0).sum(axis=1) > 330).all()
    with pytest.raises(SmoljaxError, match="more than the 400 of a row"):
        next(open_pipeline([scenes_source(questions=9)], PROCESSOR, dataclasses.replace(config, fit=False)))


def test_an_open_row_that_changed_is_refused(open_pipeline):
    first = open_pipeline([number_source(9)], PROCESSOR, PACKED)
    next(first)
    longer = number_source(9, make=lambda number: number_record(number, words=60))
    with pytest.raises(SmoljaxError, match="no longer as it was"):
        open_pipeline([longer], PROCESSOR, PACKED).set_state(first.get_state())


def test_too_many_tiles_are_refused(open_pipeline):
    config = dataclasses.replace(CONFIG, split=True, longest_edge=None, sequence_length=900)
    with pytest.raises(SmoljaxError, match=r"record-.*: 17 tiles, more than the 5 of a row; raise max_tiles"):
        next(open_pipeline([number_source(4)], PROCESSOR, config))


@pytest.mark.parametrize("seed", range(6))
def test_the_one_good_record_among_bad_ones_is_found(open_pipeline, seed):
    def make(number):
        return number_record(number, words=2 if number == 4 else 90)

    config = dataclasses.replace(CONFIG, on_error="skip")
    alone = number_source(10, make=make, on_error="skip")
    assert set(flat(take(open_pipeline([alone], PROCESSOR, config, seed=seed), 2))) == {4}
    # Nine of ten draws go to a source without any.
    bad = number_source(3, make=lambda number: number_record(number, words=90), on_error="skip")
    mixed = [number_source(10, make=make, on_error="skip"), bad]
    found = take(open_pipeline(mixed, PROCESSOR, config, weights=[1, 9], seed=seed), 2)
    assert set(flat(found)) == {4}


def test_sources_of_one_name_are_counted_together(open_pipeline):
    def make(number):
        return number_record(number, words=90 if number == 1 else 2)

    config = dataclasses.replace(CONFIG, on_error="skip")
    twice = [number_source(4, make=make, on_error="skip") for _ in range(2)]
    iterator = open_pipeline(twice, PROCESSOR, config)
    take(iterator, 3)
    (counts,) = iterator.skipped().values()
    assert list(counts.values()) == [2]


def test_another_setting_of_the_config_is_another_stream(open_pipeline):
    state = open_pipeline([number_source(9)], PROCESSOR, CONFIG).get_state()
    other = dataclasses.replace(CONFIG, loss_on="answers")
    with pytest.raises(SmoljaxError, match="has loss_on smolvlm2, this run has answers"):
        open_pipeline([number_source(9)], PROCESSOR, other).set_state(state)


def test_data_without_a_usable_record_ends_in_an_error(open_pipeline):
    config = dataclasses.replace(CONFIG, on_error="skip", sequence_length=10)
    with pytest.raises(SmoljaxError, match="not one of 13 records in turn could be used"):
        next(open_pipeline([number_source(6, on_error="skip")], PROCESSOR, config))


def test_pairs_and_dense_labels_of_packed_rows(open_pipeline):
    config = dataclasses.replace(PACKED, sequence_length=900, max_tiles=3)
    labelled = scenes_source(questions=1, contrastive=True, dense=True)
    batches = take(open_pipeline([labelled, number_source(5)], PROCESSOR, config, [1, 1], seed=0), 6)
    end = PROCESSOR.tokenizer.token_id("<end_of_utterance>")
    seen = 0
    for batch in batches:
        assert batch["pair_image"].shape == batch["pair_text"].shape == (2, 3)
        assert {name: labels.shape for name, labels in batch["patches"].items()} == dict.fromkeys(
            ["object_shape", "object_colour", "object_size", "object_texture", "character"], (2, 3, 144)
        )
        for row in range(2):
            ids, segments = batch["input_ids"][row], batch["segment_ids"][row]
            images, captions = (batch[name][row] for name in ("pair_image", "pair_text"))
            assert ((images >= 0) == (captions >= 0)).all()
            for image, caption in zip(images[images >= 0], captions[captions >= 0], strict=True):
                assert ids[image] == ids[caption] == end
                assert segments[caption] == segments[image] + 1
                assert batch["branch_ids"][row, image] == 1
                seen += 1
            scenes = len(re.findall(r"User: Caption", PROCESSOR.tokenizer.decode(ids)))
            assert scenes == (images >= 0).sum() == (batch["patches"]["character"][row] > 0).any(axis=1).sum()
    assert seen > 6


def test_a_config_opens_its_files(tmp_path):
    for name in "ab":
        lines = [
            {
                "messages": [
                    {"role": "user", "content": f"Number {number}?"},
                    {"role": "assistant", "content": name},
                ]
            }
            for number in range(6)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = tuple(
        SourceConfig(str(tmp_path / f"{name}.jsonl"), weight=weight) for name, weight in [("a", 3), ("b", 1)]
    )
    config = dataclasses.replace(CONFIG, sources=sources, sequence_length=60)
    iterator = make_iterator(config, PROCESSOR, seed=0)
    batches = take(iterator, 6)
    for batch in batches:
        answers = re.findall(r"Assistant: (.)", "".join(texts(batch)))
        assert sorted(answers) == ["a", "a", "a", "b"]
        assert batch["pixel_values"].shape == (4, 5, 3, 32, 32)
        assert not batch["tile_mask"].any()
    late = make_iterator(config, PROCESSOR, seed=0, start=4)
    assert_same(take(late, 2), batches[4:])
    iterator.close()
    late.close()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"seed": -1}, "seed is -1"),
        ({}, {"shard_index": 2, "shard_count": 2}, "shard 2 of 2"),
        ({}, {"shard_count": 3}, "batch_size 4 is not a multiple of the 3 hosts"),
        ({"batch_size": 0}, {}, "batch_size is 0; it must be at least 1"),
        ({"sources": ()}, {}, "no source"),
        ({"loss_on": "all"}, {}, "loss_on is 'all'"),
        ({"on_error": "warn"}, {}, "on_error is 'warn'; known: raise, skip"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, options, message):
    with pytest.raises(UsageError, match=message):
        pipeline([number_source()], PROCESSOR, dataclasses.replace(CONFIG, **changes), **options)
    with pytest.raises(UsageError, match="weight is 0"):
        SourceConfig("a.jsonl", weight=0)


def test_scenes_are_read_as_a_run_reads_them(open_pipeline, tmp_path):
    options = {"questions": 3, "contrastive": True, "dense": True, "data_dir": tmp_path}
    sources = (SourceConfig("tfds:scenes/tiny:train", options=options),)
    config = dataclasses.replace(CONFIG, sources=sources, batch_size=8, sequence_length=1600, max_tiles=1)
    iterator = make_iterator(config, PROCESSOR, seed=0)
    batches = take(iterator, 16)
    iterator.close()
    locate = [text for batch in batches for text in texts(batch) if "Locate the" in text]
    assert len(locate) > 100
    assert all(re.search(r"Locate the [a-z ]+\.\nAssistant: (<loc_\d+>){4}\n", text) for text in locate)
    for batch in batches:
        assert (batch["pair_text"] > batch["pair_image"]).all()
        for name in ("shape", "colour", "size", "texture"):
            labels = batch["patches"][f"object_{name}"]
            assert (labels.any(axis=(1, 2)) & (labels == 0).any(axis=(1, 2))).all()
    # 16 batches of 8 are the 64 pictures twice, the second time with other words.
    first, second = (
        [row.tobytes() for b in half for row in b["pixel_values"]] for half in (batches[:8], batches[8:])
    )
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 64
    assert not {text for b in batches[:8] for text in texts(b)} & {
        text for b in batches[8:] for text in texts(b)
    }
