"""Serving many: every row's answer is the one that it would get alone, however rows come and go."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generation import IMAGE, PAD, STOP, count_compilations, make_batch

from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import programs
from smoljax.generation.generator import Generator
from smoljax.generation.options import Sampling
from smoljax.generation.prefixes import PrefixCache
from smoljax.generation.rows import empty_cache
from smoljax.generation.serving import Engine
from smoljax.nn.smolvlm import forward
from smoljax.nn.stacking import stack_layers


@pytest.fixture(scope="module")
def generator(tiny_config, tiny_params):
    return Generator(tiny_config, tiny_params, (STOP,), PAD)


def alone(generator, requests):
    return [generator.generate(batch, limit, sampling)[0] for batch, limit, sampling in requests]


def serve(engine, requests):
    """Answers in the order of the requests."""
    numbers = [engine.submit(*request) for request in requests]
    found = {answer.id: answer for answer in engine.run()}
    return [found[number] for number in numbers]


def many():
    """Requests of all kinds: words alone, pictures of one and several tiles, several chunks, one token, many."""
    shapes = [
        (0, 9, 20),
        (2, 9, 7),
        (5, 10, 32),
        (1, 3, 1),
        (17, 80, 12),
        (0, 150, 18),
        (3, 17, 29),
        (0, 1, 25),
    ]
    return [
        (make_batch(tiles, text, seed=number), limit, None)
        for number, (tiles, text, limit) in enumerate(shapes)
    ]


@pytest.mark.parametrize("length", [40, 33])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_in_chunks_scores_as_in_one_piece(tiny_config, tiny_params, length, side):
    """Chunks of 16, the last one padded; image tokens fall on both sides of a cut."""
    ids = np.random.default_rng(0).integers(1, 290, (1, length)).astype(np.int32)
    ids[0, 10:22] = IMAGE
    features = np.random.default_rng(1).standard_normal((1, 3, 4, 32)).astype(np.float32)
    whole = jax.jit(partial(forward, tiny_config))(
        tiny_params, {"input_ids": ids, "image_features": features}
    )
    cache, flat = empty_cache(tiny_config, 1, 64), features.reshape(1, 1, 12, 32)
    extend = jax.jit(partial(programs.extend, tiny_config))
    for start in range(0, length, 16):
        part = ids[:, start : start + 16]
        count = part.shape[1]
        widths = (16 - count, 0) if side == "left" else (0, 16 - count)
        batch = {
            "input_ids": jnp.asarray(np.pad(part, ((0, 0), widths))),
            "attention_mask": jnp.asarray(np.pad(np.ones((1, count), bool), ((0, 0), widths))),
        }
        seats = int((part == IMAGE).sum())
        if seats:
            own = np.pad(flat[:, :, :seats], ((0, 0), (0, 0), (0, 16 - seats), (0, 0)))
            batch["image_features"], flat = jnp.asarray(own), flat[:, :, seats:]
        cache, logits = extend(tiny_params, batch, cache)
        np.testing.assert_allclose(logits[0], whole.logits[0, start + count - 1], atol=2e-5)
    assert int(cache.valid.sum()) == length
    assert int(cache.index[0]) == (length if side == "right" else -(-length // 16) * 16)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_greedy_answers_are_those_of_each_request_alone(generator, rows):
    requests = many()
    engine = Engine(generator, rows, 512, stride=4, chunk=64)
    found = serve(engine, requests)
    assert [answer.generation for answer in found] == alone(generator, requests)
    assert [answer.prompt_tokens for answer in found] == [batch["input_ids"].size for batch, *_ in requests]
    assert engine.stats.new_tokens == sum(len(answer.generation.token_ids) for answer in found)
    assert engine.stats.requests == len(requests)
    assert engine.stats.steps < sum(limit for _, limit, _ in requests) / (1 if rows == 1 else 2)
    assert 1 <= engine.stats.mean_rows <= rows
    assert not engine.busy


def test_requests_may_come_while_others_are_answered(generator):
    requests = many()
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    found, numbers = {}, []
    for request in requests:
        numbers.append(engine.submit(*request))
        for update in engine.step():
            found.setdefault(update.id, []).extend(update.token_ids)
    while engine.busy:
        for update in engine.step():
            found.setdefault(update.id, []).extend(update.token_ids)
    assert [found[number] for number in numbers] == [one.token_ids for one in alone(generator, requests)]


@pytest.mark.parametrize("more", [0, 1])
def test_a_step_ends_with_a_row_that_another_waits_for(generator, more):
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    for number, limit in enumerate([3, 20, 20, *[20] * more]):
        engine.submit(make_batch(0, 9, seed=number), limit)
    assert [len(update.token_ids) for update in engine.step()] == [3, *[3 if more else 5] * 2]


def test_a_stop_token_frees_the_row(generator):
    requests = [(make_batch(1, 9, seed=number), 20, None) for number in range(6)]
    stop = alone(generator, requests[:1])[0].token_ids[4]
    stopping = dataclasses.replace(generator, stop_ids=(stop,))
    wanted = alone(stopping, requests)
    assert wanted[0].finish_reason == "stop"
    found = serve(Engine(stopping, 3, 512, stride=4, chunk=64), requests)
    assert [answer.generation for answer in found] == wanted


def test_drawn_answers_do_not_depend_on_the_neighbours(generator):
    warm = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=3)
    drawn = [(batch, limit, warm) for batch, limit, _ in many()[:4]]
    mixed = [
        (batch, limit, dataclasses.replace(warm, seed=number) if number % 2 else None)
        for number, (batch, limit, _) in enumerate(drawn)
    ]
    for requests in (drawn, mixed, mixed[::-1]):
        found = serve(Engine(generator, 3, 512, stride=4, chunk=64), requests)
        assert [answer.generation for answer in found] == alone(generator, requests)
    other = [(batch, limit, dataclasses.replace(warm, seed=4)) for batch, limit, _ in drawn]
    assert alone(generator, other) != alone(generator, drawn)


@pytest.mark.slow
def test_scanned_layers_serve_the_same(tiny_config, tiny_params, generator):
    scanned = Generator(tiny_config.with_compute(scan_layers=True), stack_layers(tiny_params), (STOP,), PAD)
    requests = many()[:3]
    found = serve(Engine(scanned, 2, 512, chunk=32), [*requests, *requests])
    assert [answer.generation for answer in found] == [*alone(generator, requests)] * 2
    assert all(answer.cached_tokens for answer in found[3:])


def test_a_second_question_about_a_picture_reads_the_question_only(generator):
    first = make_batch(5, 9, seed=1)
    second = {**first, "input_ids": first["input_ids"].copy()}
    second["input_ids"][0, -4:] = [7, 8, 9, 10]
    requests = [(first, 12, None), (second, 12, None), (first, 12, None)]
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    found = serve(engine, requests)
    length = first["input_ids"].size
    assert [answer.cached_tokens for answer in found] == [0, length - 4, length - 1]
    assert engine.stats.cached_tokens == 2 * length - 5
    assert engine.stats.prefilled_tokens == length + 5
    assert engine.stats.tiles == 5
    plain = Engine(generator, 3, 512, stride=4, chunk=64, prefix_bytes=0)
    without = serve(plain, requests)
    assert [answer.generation for answer in found] == [answer.generation for answer in without]
    assert [answer.generation for answer in found] == alone(generator, requests)
    assert plain.stats.cached_tokens == len(plain.prefixes) == 0
    assert plain.stats.tiles == 15


def test_another_picture_with_the_same_tokens_is_read(generator):
    first, second = make_batch(2, 9, seed=1), make_batch(2, 9, seed=1)
    second["pixel_values"] = second["pixel_values"].copy()
    second["pixel_values"][0, 1, 0, 0, 0] += 1
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    found = serve(engine, [(first, 12, None), (second, 12, None)])
    assert found[1].cached_tokens == 5  # the first word and the first tile, which is the same
    assert engine.stats.tiles == 3
    assert [a.generation for a in found] == alone(generator, [(first, 12, None), (second, 12, None)])


def test_a_system_prompt_in_common_is_read_once(generator):
    rng = np.random.default_rng(0)
    system = rng.integers(1, 290, 90)
    asked = [np.concatenate([system, rng.integers(1, 290, 20)]) for _ in range(5)]
    asked.append(np.concatenate([asked[2], rng.integers(1, 290, 11)]))  # goes on from the end of another
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    found = serve(engine, [(ids, 10) for ids in asked])
    assert [answer.cached_tokens for answer in found] == [0, 90, 90, 90, 90, 110]
    batches = [({"input_ids": ids[None].astype(np.int32)}, 10, None) for ids in asked]
    assert [answer.generation for answer in found] == alone(generator, batches)


def test_the_prefix_cache_keeps_its_bound(generator):
    token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    engine = Engine(generator, 3, 512, stride=4, chunk=32, prefix_bytes=5 * 32 * token)
    words = np.random.default_rng(0).permutation(290)[:60]  # none begins as another
    requests = [(np.roll(words, number), 6, None) for number in range(6)]
    found = serve(engine, requests)
    assert 0 < engine.prefixes.size <= engine.prefixes.limit
    assert len(engine.prefixes) == 5
    again = serve(engine, [requests[5], requests[0]])
    assert [answer.cached_tokens for answer in again] == [59, 0]
    assert [answer.generation for answer in again] == [found[5].generation, found[0].generation]
    tiny = Engine(generator, 3, 512, stride=4, chunk=32, prefix_bytes=31 * token)
    assert [a.generation for a in serve(tiny, requests[:2])] == [a.generation for a in found[:2]]
    assert tiny.prefixes.size == 0


def test_the_tree_finds_the_longest_beginning_and_drops_the_oldest():
    def told(text):
        return np.array([[ord(letter), 0] for letter in text], np.uint64).reshape(-1, 2)

    def found(text):
        return [(segment.data, count) for segment, count in tree.find(told(text))]

    tree = PrefixCache(4)
    chain = tree.add([], told("abcdef"), "one", 1)
    tree.add(chain, told("gh"), "two", 1)
    tree.add(tree.find(told("abcx")), told("xyz"), "three", 1)
    assert found("abcdefgz") == [("one", 6), ("two", 1)]
    assert found("abcxyq") == [("one", 3), ("three", 2)]
    assert found("b") == []
    tree.add(tree.find(told("q")), told("q"), "four", 1)
    found("abcdefgh")
    tree.add([], told("r"), "five", 1)  # "three" was asked for longest ago
    assert found("abcxyz") == [("one", 3)]
    assert found("abcdefgh") == [("one", 6), ("two", 2)]
    assert tree.size == len(tree) == 4
    assert tree.add([], told("s"), "large", 5) is None


def test_a_long_prompt_is_read_while_others_are_answered(generator):
    """A chunk a step: who is being answered waits for one chunk at most."""
    engine = Engine(generator, 2, 512, stride=4, chunk=64)
    first, long = (make_batch(0, 9, seed=1), 40, None), (make_batch(0, 250, seed=2), 5, None)
    one = engine.submit(*first)
    engine.step()
    two = engine.submit(*long)
    answers, brought = {}, []
    while engine.busy:
        updates = {update.id: update for update in engine.step()}
        brought.append(tuple(len(updates[n].token_ids) if n in updates else 0 for n in (one, two)))
        answers.update({n: update.answer.generation for n, update in updates.items() if update.answer})
    assert brought[:3] == [(4, 0)] * 3
    assert brought[3][0] == 4
    assert brought[3][1] > 0
    assert [answers[one], answers[two]] == alone(generator, [first, long])


def test_compilations_do_not_grow_with_requests(generator):
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    serve(engine, many())
    serve(engine, many())  # pastes
    before = len(generator.compiled)
    again = [(make_batch(tiles, text, seed=40 + tiles), 9, None) for tiles in (0, 2, 5) for text in (9, 30)]
    with count_compilations() as compiled:
        serve(engine, [*many(), *again, *again, *many()])
    assert compiled == []  # not even a helper of jax's own
    assert len(generator.compiled) == before
    assert engine.stats.compilations <= before


@pytest.mark.slow
def test_the_rows_grow_and_shrink_with_what_they_hold(generator):
    engine = Engine(generator, 3, 1024, stride=4, chunk=64)
    requests = [(make_batch(0, text, seed=text), limit, None) for text, limit in ((9, 32), (400, 4), (9, 30))]
    wanted, seen = alone(generator, requests), []
    numbers, found = [engine.submit(*request) for request in requests], {}
    while engine.busy:
        for update in engine.step():
            if update.answer:
                found[update.id] = update.answer.generation
        seen.append(engine._state.cache.num_slots)
    assert [found[number] for number in numbers] == wanted
    assert max(seen) == 512
    assert seen[-1] == 256


def test_the_cache_of_the_rows_is_updated_in_place(generator):
    engine = Engine(generator, 3, 512, stride=4, chunk=64)
    serve(engine, many()[:3])
    cache = engine._state.cache
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.k, cache.v)))
    for name in ("take", "decode"):
        sizes = [key for key in generator.compiled if key[:2] == ("serving", name) and key[2][:2] == (3, 256)]
        assert sizes
        for key in sizes:
            assert generator.compiled[key].memory_analysis().alias_size_in_bytes >= held


def test_replaced_weights_forget_what_was_read(tiny_params, generator):
    generator = dataclasses.replace(generator)
    engine, request = Engine(generator, 3, 512, stride=4, chunk=64), (make_batch(1, 9), 8, None)
    first = serve(engine, [request])[0]
    generator.replace_params(jax.tree.map(lambda leaf: -leaf, tiny_params))
    second = serve(engine, [request])[0]
    assert second.cached_tokens == 0
    assert second.generation == alone(generator, [request])[0] != first.generation
    engine.submit(*request)
    engine.submit(make_batch(1, 9)["input_ids"][0], 100)
    engine.step()
    generator.replace_params(tiny_params)
    with pytest.raises(SmoljaxError, match="replaced"):
        engine.step()


def test_wrong_calls(generator, tiny_config, tiny_params):
    engine, batch = Engine(generator, 2, 64), make_batch(1, 5)
    with pytest.raises(UsageError, match="64 slots"):
        engine.submit(batch, 60)
    with pytest.raises(UsageError, match="positions"):
        engine.submit(batch, 5000)
    with pytest.raises(UsageError, match="empty"):
        engine.submit([], 5)
    with pytest.raises(UsageError, match="max_new_tokens"):
        engine.submit(batch, 0)
    with pytest.raises(UsageError, match="must match"):
        engine.submit({**batch, "tile_mask": np.zeros((1, 1), bool)}, 5)
    with pytest.raises(UsageError, match="batch of 2"):
        engine.submit({"input_ids": np.ones((2, 3), np.int32)}, 5)
    with pytest.raises(UsageError, match="repetition"):
        engine.submit(batch, 5, Sampling(repetition_penalty=1.2))
    with pytest.raises(UsageError, match="rows is 0"):
        Engine(generator, 0)
    assert not engine.busy
    sharing = dataclasses.replace(tiny_config.sharing, image_attention="bidirectional")
    other = dataclasses.replace(tiny_config, sharing=sharing)
    with pytest.raises(UsageError, match="causal"):
        Engine(Generator(other, tiny_params, (STOP,), PAD))
    with pytest.raises(UsageError, match="causal"):
        programs.extend(
            other, tiny_params, {"input_ids": jnp.ones((1, 4), int)}, empty_cache(tiny_config, 1, 8)
        )


def test_weights_that_are_no_numbers_are_loud(tiny_params, generator):
    broken = {
        **tiny_params,
        "decoder": {**tiny_params["decoder"], "final_norm": {"scale": np.full(32, np.nan, np.float32)}},
    }
    generator = dataclasses.replace(generator, params=broken)
    engine, request = Engine(generator, 3, 512, stride=4, chunk=64), (make_batch(0, 5), 3)
    engine.submit(*request)
    with pytest.raises(SmoljaxError, match="not finite"):
        engine.step()
    generator.replace_params(tiny_params)
    assert serve(engine, [request])[0].generation == generator.generate(*request)[0]
