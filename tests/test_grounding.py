"""Relevance against its definition and against models whose answer is known to come from one place."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_calls import call
from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

import smoljax.nn.decoder
import smoljax.nn.patch_encoder
from smoljax import presets
from smoljax.config import VisionConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.options import Generation
from smoljax.grounding import ground, maps, programs, relevance, relevances, vision_programs
from smoljax.grounding.drawing import draw, overlay
from smoljax.grounding.layers import attention_gradient
from smoljax.grounding.locate import LabelledBox, answer_text, labelled_boxes, location_count
from smoljax.nn.smolvlm import forward, init_params
from smoljax.nn.stacking import stack_layers, unstack_layers
from smoljax.ops.attention import attention
from smoljax.processing.processor import Processor
from smoljax.processing.testing import pattern_picture, tiny_files, tiny_processor
from smoljax.processing.tokenizer import Tokenizer
from smoljax.vlm import VLM


def pointing_processor(count=32):
    """The tiny processor with location tokens: 334 ids."""
    files = tiny_files()
    backend = Backend.from_buffer(files["tokenizer.json"])
    tokens = [AddedToken(f"<loc_{index}>", special=True, normalized=False) for index in range(count)]
    backend.add_special_tokens(tokens)
    return Processor.from_files({**files, "tokenizer.json": backend.to_str().encode()})


@pytest.fixture(scope="module")
def vlm():
    """A tiny model with location tokens, and weights large enough that every layer matters."""
    config = presets.tiny(vocab_size=340)
    stacked = config.with_compute(scan_layers=True)
    params = unstack_layers(jax.jit(lambda key: init_params(stacked, key))(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 1 else leaf, params)
    return VLM(config, params, pointing_processor(), "tiny")


@contextlib.contextmanager
def changed_weights(module, changes):
    """Runs a part of the model with `changes[i]` added to the attention weights of its i-th layer."""
    layers = iter(range(len(changes)))

    def attend(q, k, v, mask):
        N = q.shape[2]
        weights = attention(q, k, v, mask)[1] + changes[next(layers)]
        repeated = jnp.repeat(v, N // v.shape[2], axis=2)
        return jnp.einsum("bnts,bsnh->btnh", weights, repeated), weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "attention", attend)
        yield


def check_by_differences(module, layer, x, places):
    """The gradient of a random linear score of the layer's output, entry by entry, by central differences."""
    direction = jax.random.normal(jax.random.key(3), x.shape)
    _, gradient, weights = jax.jit(lambda x: attention_gradient(layer, x, direction))(x)

    @jax.jit
    def score(change):
        with changed_weights(module, [change]):
            return (layer(x)[0] * direction).sum()

    for place in places:
        up, down = (jnp.zeros(weights.shape).at[place].set(step) for step in (0.02, -0.02))
        assert abs(gradient[place]) > 1e-2
        np.testing.assert_allclose(gradient[place], (score(up) - score(down)) / 0.04, rtol=2e-2, atol=2e-3)


def test_gradient_of_decoder_weights_by_finite_differences(vlm):
    x = jax.random.normal(jax.random.key(1), (2, 6, 32))
    mask = jnp.ones((2, 6), bool).at[1, 0].set(False)
    layer = programs.make_decoder_layer(vlm.config, vlm.params["decoder"]["layers_1"], mask)
    check_by_differences(smoljax.nn.decoder, layer, x, [(0, 0, 5, 2), (0, 3, 3, 3), (1, 2, 4, 1)])


def test_gradient_of_encoder_weights_by_finite_differences(vlm):
    x = jax.random.normal(jax.random.key(2), (1, 16, 24))
    layer = vision_programs.make_encoder_layer(vlm.config, vlm.params["vision"]["layers_0"])
    check_by_differences(smoljax.nn.patch_encoder, layer, x, [(0, 0, 5, 2), (0, 1, 3, 15), (0, 1, 0, 0)])


def test_relevance_is_the_published_rule_on_the_whole_model(vlm):
    """All weights of all layers at once, R a whole matrix: eqs. 5 and 6 as they are written."""
    batch = vlm.prepare(prompt="What?", images=pattern_picture(60, 30), longest_edge=64)
    answer, rows = [65, 66, 67], slice(-4, -1)
    ids = jnp.concatenate([batch.input_ids, jnp.array([answer])], axis=1)
    fed = {"input_ids": ids, "tile_mask": batch.tile_mask}
    fed["image_features"] = vlm.generator.encode_images(batch.arrays())

    def score(changes):
        with changed_weights(smoljax.nn.decoder, changes):
            out = forward(vlm.config, vlm.params, fed, capture=("attention",))
        p = jax.nn.softmax(out.logits[0, rows])[jnp.arange(3), jnp.array(answer)]
        return (jnp.log(p) - jnp.log1p(-p)).sum(), out.captured["attention"]

    T, N = ids.shape[1], vlm.config.text.num_heads
    zeros = jnp.zeros((vlm.config.text.num_layers, 1, N, T, T))
    (value, weights), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(zeros)
    rolled = np.eye(T)
    for step in np.maximum(np.asarray(weights * gradient), 0).mean(axis=2)[:, 0]:
        rolled = rolled + step @ rolled
    wanted = rolled[rows].mean(axis=0)[:-3] - np.eye(T)[rows].mean(axis=0)[:-3]

    assert wanted.max() > 0.05
    scanned = VLM(
        vlm.config.with_compute(scan_layers=True), stack_layers(vlm.params), vlm.processor, "scanned"
    )
    seen = batch.input_ids[0] == vlm.config.image_token_id
    for model in (vlm, scanned):
        found = relevance(model, batch, answer)
        np.testing.assert_allclose(found.log_odds, value, rtol=1e-5)
        np.testing.assert_allclose(found.tokens, wanted, atol=5e-6)
        np.testing.assert_allclose(found.picture_share, wanted[seen].sum() / wanted.sum(), rtol=1e-4)


def planted(rows_of_patches=8):
    """A model made by hand: it says R if there is red anywhere, and looks for it with a single head.

    The encoder turns a patch into its red minus blue; words look at image tokens that hold some, and fetch it into
    the direction that the word "R" is read from. Everything else is zero.
    """
    tiny = presets.tiny()
    vision = VisionConfig(24, 48, 2, 2, rows_of_patches * 8, 8, 1e-6)
    config = dataclasses.replace(tiny, vision=vision)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(lambda k: init_params(config, k), jax.random.key(0)),
    )
    for part, layers in ((params["vision"], 2), (params["decoder"], 3)):
        for norms in (part, *(part[f"layers_{i}"] for i in range(layers))):
            for name in norms:
                if "norm" in name:
                    norms[name]["scale"][:] = 1
    patch = params["vision"]["patch_embedding"]["kernel"]
    patch[:64, 0], patch[128:, 0] = 1 / 64, -1 / 64  # channel, row, column
    params["vision"]["patch_embedding"]["bias"][5:7] = (
        3,
        -3,
    )  # so that the norms do not blow up a trace of red
    params["connector"]["proj"]["kernel"][::24, 0] = 1
    params["connector"]["proj"]["kernel"][5::24, 3] = 1
    params["embedding"]["table"][:, 1] = 1
    attention_ = params["decoder"]["layers_1"]["attention"]
    slow = 3  # the pair of head dimensions that RoPE turns least
    attention_["q"]["kernel"][1, slow], attention_["k"]["kernel"][0, slow] = 1, 1
    attention_["v"]["kernel"][0, 0], attention_["out"]["kernel"][0, 2] = 1, 1
    params["embedding"]["head"][ord("R") - 33, 2] = 1
    processor = tiny_processor(
        tile_size=rows_of_patches * 8, longest_edge=256, image_seq_len=(rows_of_patches // 2) ** 2
    )
    return VLM(config, jax.tree.map(jnp.asarray, params), processor, "planted")


@pytest.fixture(scope="module")
def red_finder():
    return planted()


def spotted(width, height, x, y, side, colour=(255, 0, 0)):
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[y : y + side, x : x + side] = colour
    return picture


@pytest.mark.parametrize("cell", [(0, 0), (3, 1), (1, 2), (3, 3)])
@pytest.mark.parametrize("patches", [False, True])
def test_the_map_points_at_the_planted_place(red_finder, cell, patches):
    col, row = cell
    picture = spotted(64, 64, col * 16, row * 16, 16)
    picture[:8, 56:] = (0, 0, 255)
    found = ground(red_finder, picture, "What?", max_new_tokens=1, patches=patches, split=False)
    assert found.answer == "R"
    cells = found.relevance.maps[0]
    scale = 2 if patches else 1
    assert cells.shape == (4 * scale, 4 * scale)
    inside = cells[row * scale : (row + 1) * scale, col * scale : (col + 1) * scale]
    assert inside.sum() > 0.95 * cells.sum() > 0
    x, y = found.relevance.peak(64, 64)
    assert (int(x) // 16, int(y) // 16) == cell


def test_single_patches_are_told_apart_by_the_finer_map(red_finder):
    picture = spotted(64, 64, 24, 40, 8)  # the lower right patch of token (2, 1)
    coarse, fine = (
        ground(red_finder, picture, "What?", max_new_tokens=1, patches=patches, split=False).relevance
        for patches in (False, True)
    )
    assert np.unravel_index(coarse.maps[0].argmax(), (4, 4)) == (2, 1)
    assert np.unravel_index(fine.maps[0].argmax(), (8, 8)) == (5, 3)
    np.testing.assert_allclose(fine.tokens, coarse.tokens, atol=1e-6)


def test_a_split_picture_is_put_together_again(red_finder):
    width, height = 256, 128  # 2 × 4 tiles of 64 pixels, and the whole
    batch = red_finder.prepare(prompt="What?", images=spotted(width, height, 176, 80, 16))
    assert batch.grids == [[(2, 4)]]
    found = relevance(red_finder, batch, [ord("R") - 33])
    (cells,) = found.maps
    assert cells.shape == (8, 16)
    assert np.unravel_index(cells.argmax(), cells.shape) == (5, 11)
    np.testing.assert_allclose(cells.sum(), found.picture_share * found.tokens.sum(), rtol=1e-5)
    x, y = found.peak(width, height)
    assert 176 <= x < 192
    assert 80 <= y < 96
    fine = relevance(red_finder, batch, [ord("R") - 33], patches=True)
    assert fine.maps[0].shape == (16, 32)
    assert set(np.argwhere(fine.maps[0] > 0.5 * fine.maps[0].max())[:, 0]) <= {10, 11}


def test_the_right_one_of_two_pictures(red_finder):
    pictures = [spotted(64, 64, 0, 0, 16, (128, 128, 128)), spotted(64, 64, 32, 48, 16)]
    batch = red_finder.prepare(prompt="What?", images=pictures, split=False)
    first, second = relevance(red_finder, batch, [ord("R") - 33]).maps
    assert second.sum() > 20 * first.sum()
    assert np.unravel_index(second.argmax(), (4, 4)) == (3, 2)
    bare = relevance(red_finder, batch.arrays(), [ord("R") - 33])  # every tile is a picture
    np.testing.assert_allclose(bare.maps[1], second, atol=1e-6)


@pytest.mark.parametrize("patches", [False, True])
def test_a_row_of_a_batch_gets_what_it_gets_alone(vlm, patches):
    samples = [
        {"prompt": "What is it?", "images": [pattern_picture(90, 40)]},
        {"prompt": "Hm?", "images": [pattern_picture(32, 32), pattern_picture(30, 60)]},
        {"prompt": "no picture"},
    ]
    answers = [[70, 71], [80, 300, 81, 82], [90]]  # 300 is <image>: in an answer it is a word
    batch = vlm.require_processor().batch(samples, split=False)
    together = relevances(vlm, batch, answers, patches=patches)
    assert [len(row.maps) for row in together] == [1, 2, 0]
    for row, sample, answer in zip(together, samples, answers, strict=True):
        alone = relevance(vlm, vlm.prepare(**sample, split=False), answer, patches=patches)
        np.testing.assert_allclose(row.log_odds, alone.log_odds, rtol=1e-4)
        np.testing.assert_allclose(row.tokens, alone.tokens, atol=2e-5)
        for ours, theirs in zip(row.maps, alone.maps, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_targets_choose_the_tokens_that_count(vlm):
    batch = vlm.prepare(prompt="What?", images=pattern_picture(32, 32))
    first = relevance(vlm, batch, [70, 71], targets=[0])
    np.testing.assert_allclose(first.tokens, relevance(vlm, batch, [70]).tokens, atol=1e-6)
    assert np.abs(first.tokens - relevance(vlm, batch, [70, 71], targets=[1]).tokens).max() > 1e-3


def test_a_certain_answer_still_has_a_map(red_finder):
    """Where p rounds to 1 the gradient of the log-probability would be gone; the map is that of a milder model."""
    batch = red_finder.prepare(prompt="What?", images=spotted(64, 64, 16, 16, 16), split=False)
    params = jax.tree.map(lambda leaf: leaf, red_finder.params)
    params["embedding"] = {**params["embedding"], "head": params["embedding"]["head"] * 30}
    sure = relevance(VLM(red_finder.config, params, red_finder.processor, "sure"), batch, [ord("R") - 33])
    assert sure.log_odds > 60
    mild = relevance(red_finder, batch, [ord("R") - 33])
    shares = [found.maps[0] / found.maps[0].sum() for found in (sure, mild)]
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-5)


def test_what_cannot_be_explained(vlm):
    batch = vlm.prepare(prompt="What?", images=pattern_picture(32, 32))
    for answers, targets, message in [
        ([], None, "1 prompts need as many answers"),
        ([[]], None, "row 0: the answer to explain is empty"),
        ([[1, 2]], [[2]], "targets must be places in an answer of 2 tokens"),
        ([[1] * 1200], None, "positions"),
    ]:
        with pytest.raises(UsageError, match=message):
            relevances(vlm, batch, answers, targets=targets)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, vlm.params)
    with pytest.raises(SmoljaxError, match="not finite"):
        relevance(VLM(vlm.config, broken, vlm.processor, "nan"), batch, [1])
    with pytest.raises(UsageError, match="empty"):
        ground(vlm, pattern_picture(32, 32), "What?", answer=" ")


def test_maps_keep_sums_and_places():
    tiles = np.arange(7 * 4, dtype=np.float32).reshape(7, 2, 2)
    split, single = maps.picture_maps(tiles[[0, 1, 2, 3, 4, 5, 6, 0]], [(2, 3), (0, 0)])
    assert split.shape == (4, 6)
    np.testing.assert_allclose(split.sum(), tiles.sum())
    np.testing.assert_array_equal(single, tiles[0])
    # Tile (1, 2) is the sixth; below its lower left cell the whole-picture tile's lower right one is 27 / 6.
    np.testing.assert_allclose(split[3, 4], tiles[5, 1, 0] + tiles[6, 1, 1] / 6)
    np.testing.assert_allclose(split[0, 2], tiles[1, 0, 0] + tiles[6, 0, 0] / 6)


def test_spread_and_peak():
    cells = np.zeros((3, 4), np.float32)
    cells[2, 1] = 5
    heat = maps.spread(cells, 80, 30)
    assert heat.shape == (30, 80)
    assert (heat.min(), heat.max()) == (0, 1)
    x, y = maps.peak(cells, 80, 30)
    assert 20 <= x < 40
    assert 20 <= y < 30
    assert not maps.spread(np.ones((2, 2)), 5, 5).any()


def test_boxes_are_read_from_location_tokens():
    tokenizer = pointing_processor().tokenizer
    assert (location_count(tokenizer), location_count(tiny_processor().tokenizer)) == (32, 0)
    text = "the cup<loc_0><loc_8><loc_15><loc_31> & a spoon: <loc_31><loc_0><loc_16><loc_1><loc_9> end"
    boxes = labelled_boxes(text, "Locate all.", 320, 640, 32)
    assert boxes == [
        LabelledBox("the cup", (5, 170, 155, 630)),
        LabelledBox("a spoon", (165, 10, 315, 30)),  # turned the right way round
    ]
    four = "<loc_0><loc_0><loc_1><loc_1>"
    for prompt, label in [("Locate the red circle.", "the red circle"), ("Where is it?", "Where is it")]:
        assert [box.label for box in labelled_boxes(four, prompt, 32, 32, 32)] == [label]
    assert labelled_boxes("<loc_0><loc_1><loc_2> nothing", "Locate it.", 32, 32, 32) == []
    assert labelled_boxes(four, "Locate it.", 32, 32, 0) == []


def test_an_answer_keeps_its_location_tokens_and_no_other_special_ones(vlm):
    tokenizer: Tokenizer = vlm.require_processor().tokenizer
    ids = tokenizer.encode(" é<loc_3><loc_10><fake_token_around_image> ok<end_of_utterance>")
    assert answer_text(vlm, Generation(ids, "stop")) == "é<loc_3><loc_10> ok"


def test_a_given_answer_is_explained_with_its_boxes(vlm):
    answer = "<loc_0><loc_16><loc_15><loc_31>"
    found = ground(vlm, pattern_picture(64, 32), "Find the dot", answer=answer, split=False)
    assert found.boxes == (LabelledBox("the dot", (1, 16.5, 31, 31.5)),)
    again = relevance(vlm, found.batch, vlm.require_processor().tokenizer.encode(" " + answer))
    np.testing.assert_allclose(found.relevance.maps[0], again.maps[0])


def test_heat_is_seen_where_it_is():
    grey = Image.new("RGB", (40, 20), (128, 128, 128))
    heat = np.zeros((20, 40), np.float32)
    heat[:, 30:] = 1
    pixels = np.asarray(overlay(grey, heat)).astype(int)
    assert np.ptp(pixels[:, :30], axis=2).max() <= 1  # still grey
    assert np.ptp(pixels[:, 30:], axis=2).min() > 60


def test_a_drawing_has_boxes_and_caption(red_finder):
    found = ground(
        red_finder, spotted(64, 32, 16, 16, 8), "Wo ist das Gerät? " * 9, max_new_tokens=1, split=False
    )
    plain = draw(found)
    boxed = draw(dataclasses.replace(found, boxes=(LabelledBox("the spot", (16, 16, 24, 24)),)))
    assert plain.width == boxed.width == 640
    assert plain.height > 320 + 3 * 16  # a caption of several lines
    changed = np.argwhere((np.asarray(plain)[:320] != np.asarray(boxed)[:320]).any(axis=-1))
    assert 235 <= changed[:, 0].max() <= 250
    assert np.asarray(plain)[330:].min() < 100  # ink


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLJAX_CACHE", str(path / "cache"))
        assert call("init", "tiny", path / "tiny")[0] == 0
        pattern_picture(90, 40).save(path / "a.png")
        yield path


def test_the_command(folder):
    args = ("ground", "-m", folder / "tiny", "-i", folder / "a.png", "-p", "What?", "--max-new-tokens", 3)
    code, out, err = call(*args, "-o", folder / "o.png", "--heatmap", folder / "h.npz", "--json")
    assert code == 0
    assert "untrained" in err
    result = json.loads(out)
    assert {"answer", "boxes", "heatmap", "out"} <= set(result)
    assert result["boxes"] == []
    assert result["heatmap"]["size"] == [4, 8]
    stored = np.load(folder / "h.npz")
    assert stored["heatmap"].shape == (4, 8)
    assert stored["boxes"].shape == (0, 4)
    assert stored["tokens"].shape == stored["input_ids"].shape
    assert Image.open(folder / "o.png").width == 640
    code, out, _ = call(*args, "--fine", "--no-split", "--answer", "a cup")
    assert code == 0
    assert out.startswith("a cup\nheat map 4 × 4, greatest at ")


@pytest.mark.parametrize(
    ("status", "options", "words"),
    [
        (1, ("-i", "missing.png"), "missing.png: no such picture"),
        (2, ("-o", "x.txt"), "x.txt: the drawing must end in .png"),
        (2, ("-o", "no/where.png"), "does not exist"),
        (2, ("--heatmap", "x.npy"), ".npz"),
        (2, ("--answer", ""), "answer to explain is empty"),
        (2, ("-m", "smolvlm-nowhere"), "no model of that name"),
    ],
)
def test_a_call_that_cannot_be_served(folder, status, options, words):
    given = {"-m": folder / "tiny", "-i": folder / "a.png", "-p": "What?"}
    given.update(zip(options[::2], options[1::2], strict=True))
    code, out, err = call("ground", *(part for pair in given.items() for part in pair))
    assert (code, out) == (status, ""), err
    assert words in err
    assert err.startswith("smoljax: error: ")
    assert err.count("\n") == 1
