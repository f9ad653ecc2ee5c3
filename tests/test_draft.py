"""A draft model: the tokens of plain greedy decoding, in as many passes as the draft's right guesses leave."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from cli_calls import call

import smoljax
from smoljax.errors import UsageError
from smoljax.generation.generator import Generator
from smoljax.generation.options import Draft, Lookup, Sampling, Timings
from smoljax.nn.packed import pack
from smoljax.nn.quantised import quantise
from smoljax.nn.smolvlm import init_params
from smoljax.nn.stacking import stack_layers

IMAGE, NEW = 300, 20


def prompt(*tiles, words=9, seed=0):
    """A row for each number of tiles, of different lengths, padded on the left."""
    rng, most = np.random.default_rng(seed), max(tiles)
    rows = [[1, *[IMAGE] * (4 * n), *rng.integers(1, 290, words - i)] for i, n in enumerate(tiles)]
    length = max(len(row) for row in rows)
    batch = {
        "input_ids": np.array([[0] * (length - len(row)) + row for row in rows], np.int32),
        "attention_mask": np.array([[i >= length - len(row) for i in range(length)] for row in rows]),
    }
    if most:
        batch["pixel_values"] = rng.standard_normal((len(tiles), most, 3, 32, 32)).astype(np.float32)
        batch["tile_mask"] = np.array([[i < n for i in range(most)] for n in tiles])
    return batch


def other(config, seed=7, **text):
    """A random model of another width, with the same words."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **{**sizes, **text}))
    return Generator(config, jax.jit(lambda key: init_params(config, key))(jax.random.key(seed)), (), 0)


def blind(config):
    return dataclasses.replace(
        config, vision=None, scale_factor=None, image_token_id=None, model_type="llama"
    )


@pytest.fixture(scope="module")
def generator(tiny_config, tiny_params):
    return Generator(tiny_config, pack(tiny_params), (), 0)


@pytest.fixture(scope="module")
def drafts(tiny_config, tiny_params, generator):
    return {
        "first layer": Draft(3, layers=1),
        "first two layers": Draft(2, layers=2),
        "words only": Draft(3, model=other(blind(tiny_config))),
        "other pictures": Draft(3, model=other(tiny_config)),
        "itself": Draft(4, model=generator),
        "int8": Draft(3, model=Generator(tiny_config, pack(quantise(tiny_params, "int8")), (), 0)),
    }


KINDS = ["first layer", "first two layers", "words only", "other pictures", "itself", "int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_greedy_one(generator, drafts, kind):
    """Three rows of different lengths and pictures; what is not a multiple of the guesses is cut where plain is."""
    batch, timings = prompt(1, 0, 3), Timings()
    wanted = generator.generate(batch, NEW)
    assert generator.generate(batch, NEW, timings=timings, ahead=drafts[kind]) == wanted
    assert timings.decode_steps == NEW - 1
    assert 0 <= timings.accepted <= timings.drafted
    if kind == "itself":
        assert timings.passes == 4  # 19 tokens, 5 a pass
    elif kind == "int8":
        assert timings.accepted > 0.5 * timings.drafted
    elif kind in ("words only", "other pictures"):
        assert timings.accepted < 0.2 * timings.drafted


@pytest.mark.parametrize(("new", "passes", "accepted"), [(20, 4, 16), (21, 4, 16), (22, 5, 17), (2, 1, 1)])
def test_what_is_right_is_counted(generator, drafts, new, passes, accepted):
    """A model drafting for itself is always right: each pass brings its four guesses and one token more."""
    timings = Timings()
    generator.generate(prompt(0), new, timings=timings, ahead=drafts["itself"])
    assert (timings.passes, timings.drafted, timings.accepted) == (passes, 4 * passes, accepted)
    assert timings.decode_steps == new - 1


def test_plain_decoding_counts_no_guesses(generator):
    timings = Timings()
    generator.generate(prompt(0), NEW, timings=timings)
    assert (timings.passes, timings.drafted, timings.accepted) == (NEW - 1, 0, 0)


@pytest.mark.slow
def test_layers_that_change_nothing_need_not_be_asked(tiny_config, tiny_params):
    """Early exit before a layer that adds nothing is always right, which wants the shared cache in step."""
    last = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if {"out", "down"} & {part.key for part in path} else leaf,
        tiny_params["decoder"]["layers_2"],
    )
    silent = {**tiny_params, "decoder": {**tiny_params["decoder"], "layers_2": last}}
    model, timings, batch = Generator(tiny_config, pack(silent), (), 0), Timings(), prompt(2, 1)
    found = model.generate(batch, 22, timings=timings, ahead=Draft(4, layers=2))
    assert found == model.generate(batch, 22)
    assert (timings.passes, timings.drafted) == (5, 2 * 20)


def test_a_stop_token_inside_the_guesses_ends_a_row(tiny_config, generator, drafts):
    batch = prompt(1, 0, 3)
    said = [row.token_ids for row in generator.generate(batch, NEW)]
    stop = next(token for token in said[0][3:6] if token not in said[1])
    stopping = Generator(tiny_config, generator.weights, (stop,), 0)
    wanted = stopping.generate(batch, NEW)
    assert stopping.generate(batch, NEW, ahead=drafts["itself"]) == wanted
    assert wanted[0].finish_reason == "stop"
    assert wanted[1].finish_reason == "length"


def test_streaming_hands_out_what_a_pass_brings_piece_by_piece(generator, drafts):
    batch, timings = prompt(0), Timings()
    pieces = list(generator.stream(batch, 21, stride=1, timings=timings, ahead=drafts["itself"]))
    assert [piece.shape for piece in pieces] == [(1, 1)] * 21
    assert generator.collect(pieces) == generator.generate(batch, 21)
    assert (timings.passes, timings.accepted, timings.decode_steps) == (4, 16, 20)


@pytest.mark.slow
def test_rounded_weights_and_scanned_layers_lend_their_first_layers(tiny_config, tiny_params, generator):
    batch, draft = prompt(0), Draft(3, layers=2)
    rounded = Generator(tiny_config, pack(quantise(tiny_params, "int8")), (), 0)
    assert rounded.generate(batch, NEW, ahead=draft) == rounded.generate(batch, NEW)
    scanned = Generator(tiny_config.with_compute(scan_layers=True), stack_layers(generator.weights), (), 0)
    assert scanned.generate(batch, NEW, ahead=draft) == generator.generate(batch, NEW)


def test_nothing_is_compiled_twice(generator, drafts):
    generator.generate(prompt(0), NEW, ahead=drafts["itself"])
    before, timings = generator.num_compilations, Timings()
    again = Draft(4, model=generator)
    generator.generate(prompt(0, words=12, seed=2), NEW + 4, timings=timings, ahead=again)
    assert (generator.num_compilations, timings.compile_s) == (before, 0)


def test_what_does_not_fit_is_refused(tiny_config, generator):
    def refused(said, draft, sampling=None, tiles=0):
        with pytest.raises(UsageError, match=said):
            generator.generate(prompt(tiles), 4, sampling, ahead=draft)

    refused("3 layers is no smaller than the model, which has 3", Draft(layers=3))
    refused(
        "vocabulary of 300 tokens and the model one of 320",
        Draft(model=other(blind(tiny_config), vocab_size=300)),
    )
    refused("no loaded model", Draft(model="smollm2-135m"))
    refused("no temperature", Draft(layers=1), Sampling(temperature=1.0))
    coarse = dataclasses.replace(tiny_config, scale_factor=4)
    refused(
        "have 32 px, 1 tokens of id 300, the model's 32 px, 4 tokens", Draft(model=other(coarse)), tiles=1
    )
    for wrong in ({}, {"layers": 1, "model": generator}, {"layers": 0}, {"layers": 1, "guesses": 0}):
        with pytest.raises(UsageError, match="draft"):
            Draft(**wrong)


@pytest.mark.slow
def test_a_loaded_model_answers_with_a_draft(tiny_folder):
    vlm = smoljax.load(tiny_folder)
    wanted = vlm.generate("What?", max_new_tokens=6)
    assert vlm.generate("What?", max_new_tokens=6, draft=Draft(2, layers=2)) == wanted
    assert "".join(vlm.generate("What?", max_new_tokens=6, draft=Draft(2, layers=2), stream=True)) == wanted
    rows = [{"prompt": "What?"}, {"prompt": "Which of them is it?"}]
    assert vlm.generate_batch(rows, max_new_tokens=6, draft=Draft(2, layers=2))[0] == wanted
    with pytest.raises(UsageError, match="a lookup or from a draft"):
        vlm.generate("What?", lookup=Lookup(), draft=Draft(layers=1))


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_the_command_guesses_ahead(tiny_folder):
    rest = ("generate", "-m", tiny_folder, "-p", "one two one two one", "--max-new-tokens", 10, "--json")

    def made(*args):
        code, out, err = call(*rest, *args)
        assert code == 0, err
        return json.loads(out)

    plain = made()
    assert (plain["timings"]["drafted"], plain["timings"]["accepted"]) == (0, 0)
    steps = len(plain["token_ids"]) - 1
    assert plain["timings"]["passes"] == steps
    for args in (
        ("--lookup", "--guesses", 2),
        ("--draft-layers", 2),
        ("--draft", tiny_folder, "--draft-weights", "float32", "--guesses", 3),
    ):
        found = made(*args)
        assert found["token_ids"] == plain["token_ids"], args
        timings = found["timings"]
        assert timings["passes"] <= steps
        assert 0 <= timings["accepted"] <= timings["drafted"]
        if args[0] == "--draft":  # itself, so always right
            assert timings["passes"] == -(-steps // 4)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--lookup", "--draft-layers", 2), "give one of --lookup, --draft and --draft-layers"),
        (("--guesses", 2), "--guesses says how far"),
        (("--draft-weights", "int8"), "--draft-weights says how the weights of --draft are kept"),
        (("--draft-layers", 9), "9 layers is no smaller than the model"),
        (("--draft", "nothing"), "nothing: no such folder or file"),
        (("--draft-layers", 2, "--temperature", 1), "no temperature"),
    ],
)
def test_the_command_refuses(tiny_folder, args, said):
    code, out, err = call("generate", "-m", tiny_folder, "-p", "hi", *args)
    assert (code, out) == (2, "")
    assert said in err
