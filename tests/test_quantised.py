"""Rounded and packed weights: what is stored, what products with them give, and that every reader takes them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoljax
from smoljax.cli.main import main
from smoljax.convert.convert import convert, load_checkpoint
from smoljax.convert.native import load_native, read_metadata
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.generator import Generator
from smoljax.nn.packed import pack, reading_weights, unpack
from smoljax.nn.quantised import kind_of, quantise
from smoljax.nn.smolvlm import SmolVLM, apply, forward, stored_params
from smoljax.nn.stacking import stack_layers
from smoljax.ops.products import bfloat16_product, int8_product, unpack_int4

IDS = np.array([[1, 7, 200, 33, 9, 41]], np.int32)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_exact_but_for_the_rounding_of_weights(rows, transposed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 96)).astype(np.float32)
    matrix = (rng.standard_normal((96, 64)) * 0.05).astype(np.float32)
    half = jnp.asarray(matrix, jnp.bfloat16)
    exact = x.astype(np.float64) @ np.asarray(half, np.float64)
    given = half.T if transposed else half
    y = jax.jit(lambda x, w: bfloat16_product(x, w, transposed=transposed))(x, given)
    np.testing.assert_allclose(y, exact, atol=1e-4)
    values = rng.integers(-127, 128, (96, 64)).astype(np.int8)
    scale = rng.uniform(1e-3, 2e-3, 64).astype(np.float32)
    exact = x.astype(np.float64) @ (values.astype(np.float64) * scale)
    given = values.T if transposed else values
    y = jax.jit(lambda x, w, s: int8_product(x, w, s, transposed=transposed))(x, given, scale)
    # Fifteen bits of a row's largest number, 96 products of up to 0.25.
    np.testing.assert_allclose(y, exact, atol=3e-4)


def test_an_int8_product_has_the_derivative_of_the_product():
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (32, 16)).astype(np.int8)
    scale = rng.uniform(0.5, 1, 16).astype(np.float32)
    x, back = rng.standard_normal((2, 32)).astype(np.float32), rng.standard_normal((2, 16)).astype(np.float32)
    values_, scale_ = jnp.asarray(values), jnp.asarray(scale)
    found = jax.grad(lambda x: (int8_product(x, values_, scale_) * back).sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, (back * scale) @ values.T.astype(np.float32), rtol=1e-4, atol=1e-3)


def test_int4_codes_come_back():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 8)).astype(np.uint8)
    multipliers = rng.integers(1, 16, (2, 8)).astype(np.uint8)
    packed = codes[:32] | (codes[32:] << 4)
    wanted = (codes.astype(int) - 8) * np.repeat(multipliers, 32, axis=0)
    np.testing.assert_array_equal(unpack_int4(jnp.asarray(packed), jnp.asarray(multipliers)), wanted)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 1 / 254), ("int4", 1 / 14 + 0.01)])
def test_rounding_moves_a_number_by_half_a_unit_at_most(kind, bound):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((64, 24)).astype(np.float32)
    found = quantise({"kernel": kernel}, kind)
    if kind == "int8":
        back = np.asarray(found["int8"]) * np.asarray(found["scale"])
        largest = np.abs(kernel).max(axis=0)
    else:
        back = np.asarray(unpack_int4(found["int4"], found["multiplier"])) * np.asarray(found["scale"])
        # A group's unit is rounded up to a fifteenth of its output's.
        grouped = np.abs(kernel).reshape(2, 32, 24).max(axis=1)
        unit = grouped.max(axis=0) / 15
        largest = np.repeat(np.ceil(grouped / unit) * unit, 32, axis=0)
    assert (np.abs(back - kernel) <= bound * largest + 1e-6).all()


@pytest.mark.parametrize(("kind", "scanned"), [("int8", False), ("int4", True)])
def test_a_quantised_model_is_the_model_of_its_rounded_weights(tiny_config, tiny_params, kind, scanned):
    """Against a plain model whose weights are what the rounded ones stand for."""
    rounded = quantise(tiny_params, kind)
    plain = _numbers(rounded)
    config = tiny_config.with_compute(scan_layers=scanned)
    if scanned:
        rounded, plain = stack_layers(rounded), stack_layers(plain)
    pixels = np.random.default_rng(0).standard_normal((1, 1, 3, 32, 32)).astype(np.float32)
    batch = {"input_ids": np.concatenate([np.full((1, 4), config.image_token_id), IDS], axis=1)}
    batch |= {"pixel_values": pixels, "tile_mask": np.ones((1, 1), bool)}
    wanted = forward(config, plain, batch).logits
    for tree in (rounded, pack(rounded)):
        found = forward(config, tree, batch).logits
        np.testing.assert_allclose(found, wanted, atol=2e-2, rtol=1e-3)
    assert not np.allclose(wanted, forward(config, _layout(tiny_params, scanned), batch).logits, atol=1e-3)


def _layout(params, scanned):
    return stack_layers(params) if scanned else params


def _numbers(tree):
    """The plain float32 tree that a quantised one stands for."""
    out = {}
    for key, value in tree.items():
        if not isinstance(value, dict):
            if not key.endswith("_scale"):
                scale = tree.get(f"{key}_scale")
                out[key] = value if scale is None else value * scale[:, None]
        elif "int8" in value:
            out[key] = {"kernel": value["int8"] * value["scale"]}
        elif "int4" in value:
            out[key] = {"kernel": unpack_int4(value["int4"], value["multiplier"]) * value["scale"]}
        else:
            out[key] = _numbers(value)
        if isinstance(value, dict) and "bias" in value and "kernel" in out[key]:
            out[key]["bias"] = value["bias"]
    return out


def test_packing_changes_nothing_and_comes_apart_again(tiny_config, tiny_params):
    packed = pack(tiny_params)
    assert set(packed["decoder"]["layers_0"]["attention"]) == {"qkv", "out"}
    assert set(packed["decoder"]["layers_0"]["mlp"]) == {"gate_up", "down"}
    assert jax.tree.structure(pack(packed)) == jax.tree.structure(packed)
    wanted = forward(tiny_config, tiny_params, {"input_ids": IDS}).logits
    np.testing.assert_allclose(forward(tiny_config, packed, {"input_ids": IDS}).logits, wanted, atol=1e-5)
    back = unpack(tiny_config.text, packed)
    assert jax.tree.structure(back) == jax.tree.structure(tiny_params)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tiny_params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_half_weights_beside_whole_activations(tiny_config, tiny_params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_params)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    wanted = forward(tiny_config, whole, {"input_ids": IDS}).logits
    np.testing.assert_allclose(forward(tiny_config, pack(half), {"input_ids": IDS}).logits, wanted, atol=2e-3)


def test_packed_weights_are_not_taken_for_others(tiny_config, tiny_params):
    """A module outside `reading_weights` says that something is missing, and computes nothing wrong."""
    for tree in (pack(tiny_params), quantise(tiny_params, "int8")):
        with pytest.raises(Exception, match="kernel"):
            SmolVLM(tiny_config).apply({"params": tree}, {"input_ids": IDS})
    with reading_weights():
        SmolVLM(tiny_config).apply({"params": pack(tiny_params)}, {"input_ids": IDS})


@pytest.mark.parametrize("kept", ["float32", "bfloat16", "int8", "int4"])
def test_shapes_are_known_before_the_weights(tiny_config, tiny_params, kept):
    if kept in ("int8", "int4"):
        tree = pack(quantise(tiny_params, kept))
    else:
        tree = pack(jax.tree.map(lambda leaf: leaf.astype(kept), tiny_params))
    known = stored_params(tiny_config, kept)
    assert jax.tree.structure(known) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(known), jax.tree.leaves(tree), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_a_quantised_folder_is_written_and_answers(tiny_folder, tmp_path, capsys):
    kind = "int4"
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tiny_folder), str(tmp_path / kind), "--quantize", kind, "--json"])
    assert end.value.code == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["to"], summary["dtype"]) == ("native", kind)
    assert read_metadata(tmp_path / kind)["format_version"] == 3
    stored = load_native(tmp_path / kind, quantised=True)
    assert stored.quantised == kind
    made = pack(quantise(load_checkpoint(tiny_folder).params, kind))
    vlm = smoljax.load(tmp_path / kind)
    assert vlm.kept == kind
    assert f"weights in {kind}" in repr(vlm)
    for one, other in zip(jax.tree.leaves(vlm.packed), jax.tree.leaves(made), strict=True):
        np.testing.assert_array_equal(one, other)
    rounded_here = smoljax.load(tiny_folder, weights=kind)
    later = smoljax.load(tmp_path / kind, background=True)
    prompt = {"prompt": "What is it?", "max_new_tokens": 6}
    answer = vlm.generate(**prompt)
    assert answer == rounded_here.generate(**prompt) == later.generate(**prompt)
    # Kept by the plain tree too, which a caller may apply.
    ids = vlm.prepare(prompt="What is it?").arrays()
    found = apply(vlm.config, vlm.params, {"input_ids": ids["input_ids"]}).logits
    np.testing.assert_allclose(found, vlm.logits(ids), atol=1e-3)


def test_what_cannot_be_done_with_rounded_weights_says_so(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "int8", quantise="int8")
    with pytest.raises(SmoljaxError, match=r"its weights are int8.*neither trained nor converted"):
        load_checkpoint(tmp_path / "int8", "float32")
    with pytest.raises(SmoljaxError, match="neither trained nor converted"):
        convert(tmp_path / "int8", tmp_path / "hf", "hf")
    with pytest.raises(SmoljaxError, match="are int8, which cannot be taken to float32"):
        smoljax.load(tmp_path / "int8", weights="float32")
    with pytest.raises(UsageError, match="no layout for these quantised weights"):
        convert(tiny_folder, tmp_path / "hf", "hf", quantise="int8")
    with pytest.raises(SmoljaxError, match="quantised already"):
        quantise(quantise({"kernel": np.ones((2, 2), np.float32)}, "int8"), "int8")
    with pytest.raises(UsageError, match="weights are 'int2'"):
        smoljax.load(tiny_folder, weights="int2")


def test_a_quantised_model_points(tiny_folder):
    """Grounding takes gradients through the products."""
    from PIL import Image

    from smoljax.grounding.explain import relevance

    picture = Image.new("RGB", (40, 30), (200, 30, 30))
    plain = smoljax.load(tiny_folder)
    rounded = smoljax.load(tiny_folder, weights="int8")
    assert kind_of(rounded.packed) == "int8"
    batch = plain.prepare(prompt="What?", images=picture).arrays()
    maps = [relevance(vlm, batch, [65, 66]).tokens for vlm in (plain, rounded)]
    assert np.isfinite(maps[1]).all()
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.9


def test_generation_compiles_for_packed_weights_once(tiny_config, tiny_params):
    generator = Generator(tiny_config, pack(tiny_params), (), 0)
    batch = {"input_ids": IDS, "attention_mask": np.ones_like(IDS, bool)}
    first = generator.generate(batch, 5)
    assert generator.generate(batch, 5)[0].token_ids == first[0].token_ids
    assert generator.num_compilations == 2
