"""Guessing ahead: the tokens of plain greedy decoding, in fewer passes where a text repeats itself."""

import jax
import numpy as np
import pytest

from smoljax.errors import UsageError
from smoljax.generation.generator import Generator
from smoljax.generation.options import Lookup, Sampling, Timings


@pytest.fixture(scope="module")
def generator(tiny_config, tiny_params):
    return Generator(tiny_config, tiny_params, (), 0)


def prompt(rows, seed=0):
    rng = np.random.default_rng(seed)
    said = rng.integers(1, 290, (rows, 12))
    ids = np.concatenate([said, said, said[:, :3]], axis=1).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    for row in range(rows):  # rows of several lengths, padded on the left
        mask[row, : 3 * row] = False
        ids[row, : 3 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("lookup", [Lookup(), Lookup(4, 1), Lookup(1, 2)])
def test_the_answer_is_the_greedy_one(generator, rows, lookup):
    batch, plain, ahead = prompt(rows), Timings(), Timings()
    wanted = generator.generate(batch, 40, timings=plain)
    found = generator.generate(batch, 40, timings=ahead, ahead=lookup)
    assert [row.token_ids for row in found] == [row.token_ids for row in wanted]
    assert plain.passes == plain.decode_steps == ahead.decode_steps == 39
    assert ahead.passes <= 39


def test_repetition_saves_passes(tiny_config, tiny_params):
    """Without attention the next word depends on the last alone, so words soon come round again."""

    def deaf(path, leaf):
        return (
            leaf * 0
            if "attention" in jax.tree_util.keystr(path) and "out" in jax.tree_util.keystr(path)
            else leaf
        )

    parrot = Generator(tiny_config, jax.tree_util.tree_map_with_path(deaf, tiny_params), (), 0)
    timings = Timings()
    found = parrot.generate(prompt(1), 128, timings=timings, ahead=Lookup())
    assert found == parrot.generate(prompt(1), 128)
    assert timings.passes < 0.6 * timings.decode_steps
    assert timings.accepted >= timings.decode_steps - timings.passes > 0
    assert timings.drafted % Lookup().guesses == 0
    assert timings.accepted <= timings.drafted
    streamed = Timings()  # what a pass brings is shown piece by piece, and costs no other pass
    list(parrot.stream(prompt(1), 128, stride=1, timings=streamed, ahead=Lookup()))
    assert streamed.passes == timings.passes


@pytest.mark.parametrize("rows", [1, 2])
def test_a_stop_token_ends_a_row_where_plain_decoding_ends_it(tiny_config, tiny_params, generator, rows):
    batch = prompt(rows)
    said = generator.generate(batch, 40)
    stop = said[0].token_ids[17]
    stopping = Generator(tiny_config, tiny_params, (stop,), 0)
    wanted = stopping.generate(batch, 40)
    assert stopping.generate(batch, 40, ahead=Lookup()) == wanted
    assert wanted[0].finish_reason == "stop"
    assert len(wanted[0].token_ids) <= 18


def test_streaming_gives_the_same_in_pieces(generator):
    batch = prompt(2)
    pieces = list(generator.stream(batch, 30, stride=4, ahead=Lookup()))
    assert max(piece.shape[1] for piece in pieces) <= 4
    whole = generator.generate(batch, 30)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), [row.token_ids for row in whole])


def test_nothing_is_compiled_twice(generator):
    batch = prompt(1, seed=1)
    generator.generate(batch, 20, ahead=Lookup(3, 2))
    before = generator.num_compilations
    generator.generate(prompt(1, seed=2), 24, ahead=Lookup(3, 2))
    assert generator.num_compilations == before


def test_what_draws_is_refused(generator):
    for sampling in (Sampling(temperature=1.0), Sampling(repetition_penalty=1.2)):
        with pytest.raises(UsageError, match="guessing ahead gives the greedy answer"):
            generator.generate(prompt(1), 4, sampling, ahead=Lookup())
    with pytest.raises(UsageError, match="at least 1"):
        Lookup(0)
