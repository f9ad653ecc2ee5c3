"""Keys and values kept in fewer bits: what rounding moves, what decoding through them gives, what they take."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoljax
from smoljax import presets
from smoljax.cli.main import main
from smoljax.config import ComputeConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.generator import Generator
from smoljax.generation.options import Lookup
from smoljax.nn.cache import Int8Slots, init_cache, token_bytes, write
from smoljax.nn.smolvlm import SmolVLM, init_params
from smoljax.nn.stacking import stack_layers
from smoljax.ops.attention import attention
from smoljax.ops.int8_attention import int8_attention, round_int8
from smoljax.sharing import SharingConfig

KINDS = ("float32", "bfloat16", "int8")
IDS = np.random.default_rng(0).integers(1, 290, (2, 24)).astype(np.int32)
# Of the logits of the tiny model, which reach 7: float32's own rounding; eight bits of a number's significand; and
# half a 127th of a head's largest number.
ERROR = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}


def test_rounding_moves_a_number_by_half_a_unit_at_most():
    x = np.random.default_rng(0).standard_normal((3, 5, 2, 16)).astype(np.float32)
    x[1, 2, 0] = 0
    values, scale = round_int8(jnp.asarray(x))
    assert (values.dtype, values.shape, scale.dtype, scale.shape) == (
        jnp.int8,
        x.shape,
        jnp.float32,
        x.shape[:-1],
    )
    largest = np.abs(x).max(axis=-1, keepdims=True)
    back = np.asarray(values, np.float32) * np.asarray(scale)[..., None]
    assert (np.abs(back - x) <= largest / 254 * 1.0001).all()
    full = np.abs(np.asarray(values)).max(axis=-1)
    assert full.ravel().tolist() == [0 if not size else 127 for size in largest.ravel()]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_stays_none(broken):
    values, scale = round_int8(jnp.asarray([[1.0, broken, 2.0]]))
    assert not np.isfinite(values * scale[..., None]).any()


@pytest.mark.parametrize("index", [jnp.int32(3), jnp.array([3, 6])], ids=["together", "each row"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_comes_back(kind, index):
    config = presets.tiny().text
    empty = init_cache(config, ComputeConfig(cache=kind), 2, 9).k[0]
    new = np.random.default_rng(0).standard_normal((2, 2, config.num_kv_heads, config.head_dim))
    slots = write(empty, jnp.asarray(new, jnp.float32), index)
    assert jax.tree.map(lambda leaf: leaf.dtype, slots) == jax.tree.map(lambda leaf: leaf.dtype, empty)
    found = np.asarray(slots.numbers(jnp.float32) if isinstance(slots, Int8Slots) else slots, np.float32)
    wanted = np.zeros(found.shape)
    for row, at in enumerate(np.broadcast_to(index, 2)):
        wanted[row, at : at + 2] = new[row]
    unit = {"float32": 1e-6, "bfloat16": 2**-8, "int8": 1 / 254}[kind]
    assert (np.abs(found - wanted) <= 1.0001 * unit * np.abs(wanted).max(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 5])
def test_attention_reads_rounded_keys_as_the_numbers_they_stand_for(queries, masked):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, queries, 6, 16)), jnp.float32)
    k, v = (
        Int8Slots(*round_int8(jnp.asarray(rng.standard_normal((2, 9, 3, 16)), jnp.float32))) for _ in "kv"
    )
    mask = jnp.asarray(rng.random((2, queries, 9)) < 0.6) if masked else None
    found = int8_attention(q, k.values, k.scale, v.values, v.scale, mask)
    wanted = attention(q, k.numbers(jnp.float32), v.numbers(jnp.float32), mask)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def decoded(config, params, ids, first):
    """Logits of `ids` read through the cache: `first` tokens at once, the others one by one."""

    @jax.jit
    def step(ids, cache):
        out = SmolVLM(config).apply({"params": params}, {"input_ids": ids}, cache)
        return out.logits, out.cache

    B, T = ids.shape
    cache = init_cache(config.text, config.compute, B, T + 2, config.sharing.image_attention)
    parts = []
    for start, stop in ((0, first), *((t, t + 1) for t in range(first, T))):
        logits, cache = step(ids[:, start:stop], cache)
        parts.append(logits)
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module")
def plain(tiny_config, tiny_params):
    return np.asarray(SmolVLM(tiny_config).apply({"params": tiny_params}, {"input_ids": IDS}).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_through_a_rounded_cache_is_near_the_full_pass(tiny_config, tiny_params, plain, kind):
    config = tiny_config.with_compute(cache=kind)
    found = decoded(config, tiny_params, IDS, 8)
    error = np.abs(found - plain).max()
    assert error <= ERROR[kind]
    assert kind == "float32" or error > 1e-4  # it is read, not what was rounded
    scanned = decoded(config.with_compute(scan_layers=True), stack_layers(tiny_params), IDS, 8)
    # A sum in another order may round a key the other way.
    np.testing.assert_allclose(scanned, found, atol=1e-4 if kind == "float32" else ERROR[kind] / 4)


def test_many_queries_at_once_read_what_few_read(tiny_config, tiny_params):
    """A prefill of more than a few queries makes numbers of the keys first."""
    config = tiny_config.with_compute(cache="int8")
    ids = np.random.default_rng(1).integers(1, 290, (1, 40)).astype(np.int32)
    np.testing.assert_allclose(
        decoded(config, tiny_params, ids, 38), decoded(config, tiny_params, ids, 20), atol=ERROR["int8"] / 4
    )


@pytest.mark.slow
def test_image_tokens_read_by_cross_attention_are_rounded_too():
    tiny = presets.tiny()
    tiny = dataclasses.replace(tiny, sharing=SharingConfig(image_attention="cross")).with_compute(
        scan_layers=True
    )
    params = jax.jit(lambda key: init_params(tiny, key))(jax.random.key(0))
    # What cross-attention adds is zero before any training.
    params = jax.tree.map(lambda leaf: leaf + 0.05 if leaf.ndim > 1 else leaf, params)
    features = np.random.default_rng(0).standard_normal((1, 1, tiny.image_seq_len, tiny.text.hidden_size))
    batch = {
        "input_ids": np.concatenate(
            [np.full((1, tiny.image_seq_len), tiny.image_token_id), IDS[:1, :6]], axis=1
        ),
        "image_features": features.astype(np.float32),
        "tile_mask": np.ones((1, 1), bool),
    }

    def last(kind):
        config = tiny.with_compute(cache=kind)
        cache = init_cache(config.text, config.compute, 1, 12, "cross")
        assert jax.tree.structure(cache.cross[0]) == jax.tree.structure(cache.k)

        @jax.jit
        def run(batch):
            out = SmolVLM(config).apply({"params": params}, batch, cache, "none")
            return SmolVLM(config).apply({"params": params}, {"input_ids": IDS[:1, 6:7]}, out.cache).logits

        return np.asarray(run(batch))

    wanted = last("float32")
    for kind in ("bfloat16", "int8"):
        assert 1e-4 < np.abs(last(kind) - wanted).max() <= ERROR[kind]


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_guessing_ahead_gives_the_greedy_answer_of_the_same_cache(tiny_config, tiny_params, kind):
    generator = Generator(tiny_config.with_compute(cache=kind), tiny_params, (), 0)
    said = np.random.default_rng(0).integers(1, 290, (2, 12))
    ids = np.concatenate([said, said, said[:, :3]], axis=1).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones(ids.shape, bool)}
    assert generator.generate(batch, 24, ahead=Lookup()) == generator.generate(batch, 24)


@pytest.mark.parametrize("scan", [False, True])
def test_what_a_cache_takes(scan):
    config = presets.get("smollm2-135m")
    taken = {}
    for kind in KINDS:
        compute = ComputeConfig(scan_layers=scan, cache=kind)
        cache = jax.eval_shape(lambda compute=compute: init_cache(config.text, compute, 3, 100))
        taken[kind] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.k, cache.v)))
        assert taken[kind] == 300 * token_bytes(config.text, compute)
    assert taken["bfloat16"] == 0.5 * taken["float32"]
    assert 0.26 < taken["int8"] / taken["float32"] < 0.28


@pytest.mark.parametrize("scan", [False, True])
def test_scales_are_split_with_the_heads_they_belong_to(tiny_config, scan):
    """In a plan of answering, over the tensor axis of a mesh."""
    from smoljax.generation.programs import DecodeState
    from smoljax.ops.partition import Partition
    from smoljax.plan.answers import _placed_state

    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"))
    partition = Partition(mesh, {"batch": ("data",), "kv_heads": ("tensor",)})
    config = dataclasses.replace(tiny_config.text, num_heads=4, num_kv_heads=2)
    compute = ComputeConfig(scan_layers=scan, cache="int8")
    cache = jax.eval_shape(lambda: init_cache(config, compute, 4, 8))
    one = jax.ShapeDtypeStruct((4,), jnp.int32)
    state = _placed_state(DecodeState(cache, one, one, one, one, one, one), partition)
    slots = state.cache.k if scan else state.cache.k[0]
    layers = (None,) if scan else ()
    assert tuple(slots.values.sharding.spec) == (*layers, "data", None, "tensor", None)
    assert tuple(slots.scale.sharding.spec) == (*layers, "data", None, "tensor")
    assert slots.scale.dtype == jnp.float32


def test_by_default_it_is_kept_as_activations_are():
    assert ComputeConfig().cache_kind == "float32"
    assert ComputeConfig(dtype="bfloat16").cache_kind == "bfloat16"
    assert ComputeConfig(dtype="bfloat16", cache="float32").cache_kind == "float32"
    with pytest.raises(SmoljaxError, match="cache is 'int4'"):
        ComputeConfig(cache="int4")


def test_a_loaded_model_and_the_command_take_it(tiny_folder, capsys):
    with pytest.raises(UsageError, match="cache is 'int4'; it must be one of float32, bfloat16, int8"):
        smoljax.load(tiny_folder, cache="int4")
    vlm = smoljax.load(tiny_folder, cache="int8")
    assert "cache in int8" in repr(vlm)
    assert "cache" not in repr(smoljax.load(tiny_folder, cache="float32"))
    answer = vlm.generate("What is it?", max_new_tokens=4)
    command = ["generate", "-m", str(tiny_folder), "-p", "What is it?", "--max-new-tokens", "4", "--json"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--cache", "int8"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["text"] == answer
    with pytest.raises(SystemExit) as end:
        main([*command, "--cache", "int4"])
    assert end.value.code == 2
    assert "cache is 'int4'" in capsys.readouterr().err
