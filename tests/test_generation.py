"""The generation engine against plain full forwards, and its promises: buckets, streaming, seeds, batches."""

import contextlib

import jax
import numpy as np
import pytest

from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.buckets import PROMPT_BUCKETS, round_up
from smoljax.generation.generator import Generator
from smoljax.generation.options import Sampling, Timings
from smoljax.nn.smolvlm import SmolVLM
from smoljax.nn.stacking import stack_layers

IMAGE, STOP, PAD = 300, 319, 0


def make_batch(tiles, text, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([[1, *[IMAGE] * (4 * tiles), *rng.integers(1, 290, text)]], np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones(ids.shape, bool)}
    if tiles:
        batch["pixel_values"] = rng.standard_normal((1, tiles, 3, 32, 32)).astype(np.float32)
        batch["tile_mask"] = np.ones((1, tiles), bool)
    return batch


def join(batches):
    """Left-pads rows into one batch, as the processor does."""
    length = max(b["input_ids"].shape[1] for b in batches)
    tiles = max(b["tile_mask"].shape[1] for b in batches)
    out = {"input_ids": [], "attention_mask": [], "pixel_values": [], "tile_mask": []}
    for b in batches:
        extra, more = length - b["input_ids"].shape[1], tiles - b["tile_mask"].shape[1]
        out["input_ids"].append(np.pad(b["input_ids"], ((0, 0), (extra, 0))))
        out["attention_mask"].append(np.pad(b["attention_mask"], ((0, 0), (extra, 0))))
        out["pixel_values"].append(np.pad(b["pixel_values"], ((0, 0), (0, more), (0, 0), (0, 0), (0, 0))))
        out["tile_mask"].append(np.pad(b["tile_mask"], ((0, 0), (0, more))))
    return {key: np.concatenate(value) for key, value in out.items()}


@contextlib.contextmanager
def count_compilations():
    """Collects every compilation that XLA does meanwhile, whoever asked for it."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def generator(tiny_config, tiny_params):
    return Generator(tiny_config, tiny_params, (STOP,), PAD)


@pytest.fixture(scope="module")
def naive(tiny_config, tiny_params):
    """Greedy decoding with one full forward a token, at one padded shape."""
    room = 64

    @jax.jit
    def last(ids, length, features_from):
        batch = {"input_ids": ids, "attention_mask": (np.arange(room) < length)[None], **features_from}
        logits = SmolVLM(tiny_config).apply({"params": tiny_params}, batch).logits
        return logits[0, length - 1].argmax()

    def run(batch, steps):
        ids = batch["input_ids"][0].tolist()
        rest = {key: batch[key] for key in ("pixel_values", "tile_mask") if key in batch}
        start = len(ids)
        for _ in range(steps):
            ids.append(int(last(np.array([ids + [PAD] * (room - len(ids))]), len(ids), rest)))
            if ids[-1] == STOP:
                break
        return ids[start:]

    return run


@pytest.mark.parametrize(("tiles", "text"), [(0, 9), (2, 9)])
def test_greedy_equals_full_forwards(generator, naive, tiles, text):
    batch = make_batch(tiles, text)
    assert generator.generate(batch, 20)[0].token_ids == naive(batch, 20)


def test_two_pictures_of_different_sizes_in_one_bucket_compile_once(tiny_config, tiny_params):
    generator = Generator(tiny_config, tiny_params, (STOP,), PAD)
    generator.generate(make_batch(2, 3, seed=1), 8)
    before, timings = generator.num_compilations, Timings()
    assert before == 3  # vision, prefill, decode
    with count_compilations() as compiled:
        generator.generate(make_batch(5, 7, seed=2), 20, timings=timings)
    assert compiled == []  # not even a helper of jax's own
    assert generator.num_compilations == before
    assert timings.compile_s == 0
    generator.generate(make_batch(12, 7, seed=3), 8)  # 56 tokens: the next bucket
    assert generator.num_compilations == before + 2


def test_a_second_request_traces_nothing(generator, monkeypatch):
    batch = make_batch(2, 9, seed=7)
    first = generator.generate(batch, 17)

    def traced(*_):
        raise AssertionError("a program was traced again")

    for name in ("prefill", "decode", "encode_tiles"):
        monkeypatch.setattr(f"smoljax.generation.programs.{name}", traced)
    assert generator.generate(batch, 17) == first


def test_the_answer_does_not_depend_on_the_bucket(generator, naive):
    # 31, 32 and 33 tokens: with one place of padding, none, and the next bucket.
    for text in (14, 15, 16):
        batch = make_batch(4, text, seed=text)
        assert generator.generate(batch, 10)[0].token_ids == naive(batch, 10)


def test_batch_rows_equal_single_runs(generator):
    singles = [make_batch(1, 9, seed=4), make_batch(5, 3, seed=5), make_batch(2, 12, seed=6)]
    want = [generator.generate(batch, 20)[0] for batch in singles]
    assert generator.generate(join(singles), 20) == want


def test_streaming_gives_the_same_tokens(generator):
    batch = make_batch(2, 9, seed=7)
    chunks = list(generator.stream(batch, 17))
    assert all(chunk.shape == (1, 1) for chunk in chunks)
    assert generator.collect(chunks) == generator.generate(batch, 17)


def test_a_stop_id_ends_the_answer(tiny_config, tiny_params, generator):
    batch = make_batch(2, 9, seed=8)
    tokens = generator.generate(batch, 20)[0].token_ids
    stop = tokens[4]
    early = Generator(tiny_config, tiny_params, (stop, STOP), PAD).generate(batch, 20)[0]
    assert early.token_ids == tokens[: tokens.index(stop) + 1]
    assert early.finish_reason == "stop"
    assert generator.generate(batch, 3)[0].finish_reason == "length"


def test_a_finished_row_does_not_disturb_the_other(tiny_config, tiny_params, generator):
    singles = [make_batch(1, 9, seed=9), make_batch(1, 9, seed=10)]
    first, second = (generator.generate(batch, 20)[0].token_ids for batch in singles)
    stop = next(token for token in first[:10] if token not in second)
    rows = Generator(tiny_config, tiny_params, (stop,), PAD).generate(join(singles), 20)
    assert rows[0].token_ids == first[: first.index(stop) + 1]
    assert rows[1].token_ids == second


def test_seeds(generator):
    batch, warm = make_batch(1, 9, seed=11), Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=1)
    first = generator.generate(batch, 20, warm)
    assert generator.generate(batch, 20, warm) == first
    other = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=2)
    assert generator.generate(batch, 20, other) != first


def test_top_k_of_one_is_greedy(generator):
    batch = make_batch(1, 9, seed=12)
    assert generator.generate(batch, 12, Sampling(temperature=3.0, top_k=1)) == generator.generate(batch, 12)


def test_repetition_penalty_stops_repeats(generator):
    batch = make_batch(1, 9, seed=13)
    tokens = generator.generate(batch, 20, Sampling(repetition_penalty=1e6))[0].token_ids
    assert len(set(tokens)) == len(tokens)
    assert not set(tokens) & set(batch["input_ids"][0].tolist())


def test_scanned_layers_generate_the_same(tiny_config, tiny_params, generator):
    batch = make_batch(2, 9, seed=14)
    scanned = Generator(tiny_config.with_compute(scan_layers=True), stack_layers(tiny_params), (STOP,), PAD)
    assert scanned.generate(batch, 12) == generator.generate(batch, 12)


def test_a_precision_of_the_caller_holds_for_every_program(tiny_config, tiny_params):
    """Decoding is compiled in a thread of its own, which would not know what is set for the caller's."""
    generator = Generator(tiny_config, tiny_params, (STOP,), PAD)
    with jax.default_matmul_precision("highest"):
        generator.generate(make_batch(0, 9, seed=14), 3)
    assert {(key[0], key[-1]) for key in generator.compiled} == {
        ("prefill", "highest"),
        ("decode", "highest"),
    }


def test_parts_at_work_are_told(tiny_config, tiny_params):
    told = []
    work = Generator(tiny_config, tiny_params, (STOP,), PAD, at_work=lambda *parts: told.append(set(parts)))
    work.generate(make_batch(1, 9, seed=14), 3)
    assert told == [{"vision", "connector"}, {"embedding", "decoder"}]


def test_tiles_in_batches_give_the_same(tiny_config, tiny_params, generator):
    batch = make_batch(5, 3, seed=15)
    many = Generator(tiny_config, tiny_params, (STOP,), PAD, tile_batch=3)
    np.testing.assert_allclose(many.encode_images(batch), generator.encode_images(batch), atol=1e-5)


def test_wrong_calls(generator, tiny_config, tiny_params):
    batch = make_batch(1, 5)
    with pytest.raises(UsageError, match="positions"):
        generator.generate(batch, 2000)
    with pytest.raises(UsageError, match="must match"):
        generator.generate({**batch, "tile_mask": np.zeros((1, 1), bool)}, 2)
    with pytest.raises(UsageError, match="empty"):
        generator.generate({"input_ids": np.zeros((1, 0), np.int32)}, 2)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}):
        with pytest.raises(UsageError):
            Sampling(**wrong)
    with pytest.raises(UsageError, match="that fit"):
        round_up(10**6, PROMPT_BUCKETS, 8192)


def test_weights_that_are_no_numbers_are_loud(tiny_config, tiny_params):
    broken = {
        **tiny_params,
        "decoder": {**tiny_params["decoder"], "final_norm": {"scale": np.full(32, np.nan, np.float32)}},
    }
    with pytest.raises(SmoljaxError, match="not finite"):
        Generator(tiny_config, broken, (STOP,), PAD).generate(make_batch(0, 5), 3)
