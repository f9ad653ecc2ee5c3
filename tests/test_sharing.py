"""Ways of sharing the embedding space: each does what its name says, and the whole model goes on working with it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax.config import from_dict, to_dict
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.hf import save_hf
from smoljax.convert.native import load_native, save_native
from smoljax.errors import SmoljaxError
from smoljax.nn.adapt import adapt
from smoljax.nn.cache import init_cache
from smoljax.nn.connector import Connector
from smoljax.nn.connectors import CONNECTORS, make_connector, register
from smoljax.nn.smolvlm import SmolVLM, forward
from smoljax.nn.stacking import stack_layers, unstack_layers
from smoljax.ops.image_tokens import image_blocks
from smoljax.processing.testing import tiny_processor
from smoljax.sharing import RELEASED, SharingConfig
from smoljax.vlm import VLM

IMAGE = 300
WAYS = {
    "mlp": SharingConfig("mlp", (("norm", True), ("hidden", 40))),
    "norm": SharingConfig("norm"),
    "norm_matched": SharingConfig("norm_matched", {"bias": True}),
    "word_mixture": SharingConfig("word_mixture", {"top_k": 5, "temperature": 0.5}),
    "visual_table": SharingConfig("visual_table", {"rows": 24, "start": "words"}),
    "nearest_word": SharingConfig("nearest_word"),
    "bidirectional": SharingConfig(image_attention="bidirectional"),
    "cross": SharingConfig(image_attention="cross"),
    "own_rows": SharingConfig(own_rows=290, input_gradient=0.25),
}
WORDS = jax.random.normal(jax.random.key(5), (30, 8)) * 0.4
PATCHES = jax.random.normal(jax.random.key(6), (2, 16, 6))


#: (config, params, batch, cache, "all", capture) → Output, compiled.
look = jax.jit(forward, static_argnums=(0, 4, 5))


@pytest.fixture(scope="module")
def ways(tiny_config, tiny_params):
    """Name → (config, parameters); what starts at zero is made random, so that it counts."""
    found = {}
    for seed, (name, sharing) in enumerate(WAYS.items()):
        config, params = adapt(tiny_config, tiny_params, sharing=sharing, seed=seed)
        if name == "cross":
            for i in range(config.text.num_layers):
                out = params["decoder"][f"layers_{i}"]["cross"]["out"]
                out["kernel"] = 0.5 * jax.random.normal(jax.random.key(i), out["kernel"].shape)
        found[name] = config, jax.tree.map(jnp.asarray, params)
    return found


def make_batch(tiles=2, before=4, after=5, seed=0):
    rng = np.random.default_rng(seed)
    ids = [*rng.integers(1, 290, before)]
    for _ in range(tiles):
        ids += [291, *[IMAGE] * 4]
    ids += [291, *rng.integers(1, 290, after)]
    return {
        "input_ids": jnp.asarray([ids], jnp.int32),
        "attention_mask": jnp.ones((1, len(ids)), bool),
        "pixel_values": jnp.asarray(rng.standard_normal((1, tiles, 3, 32, 32)), jnp.float32),
        "tile_mask": jnp.ones((1, tiles), bool),
    }


def connect(sharing, features=8, table=WORDS, scale=2, seed=0):
    """(image tokens, what else there is to see, parameters) of a fresh connector on PATCHES."""
    module = make_connector(sharing, features, scale, "float32")
    params = module.init(jax.random.key(seed), PATCHES, table)
    tokens, seen = module.apply(params, PATCHES, table, method=module.connect)
    return tokens, seen, params["params"]


def test_by_default_all_is_as_released(tiny_config):
    assert tiny_config.sharing == RELEASED
    assert type(make_connector(RELEASED, 8, 2, "float32")) is Connector
    assert RELEASED.released
    assert not any(way.released for way in WAYS.values())


@pytest.mark.parametrize("name", WAYS)
def test_config_survives_json_and_weights_a_native_folder(name, ways, tmp_path):
    config, params = ways[name]
    assert from_dict(to_dict(config)) == config
    checkpoint = Checkpoint(config, params)
    save_native(checkpoint, tmp_path / "native")
    again = load_native(tmp_path / "native")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.tree.map(np.asarray, params))
    with pytest.raises(SmoljaxError, match="native format"):
        save_hf(checkpoint, tmp_path / "hf")


@pytest.mark.parametrize("name", WAYS)
def test_pictures_matter_and_scanning_changes_nothing(name, ways):
    config, params = ways[name]
    batch = make_batch()
    out = look(config, params, batch)
    scanned = look(config.with_compute(scan_layers=True, remat="full"), stack_layers(params), batch)
    np.testing.assert_allclose(out.logits, scanned.logits, atol=1e-4)
    other = look(config, params, {**batch, "pixel_values": -batch["pixel_values"]})
    change = np.abs(out.logits - other.logits).max(axis=-1)[0]
    assert (change[:5] == 0).all()
    assert change[-1] > 1e-3


@pytest.mark.parametrize("name", ["nearest_word", "bidirectional", "cross", "own_rows"])
@pytest.mark.parametrize("scan", [False, True])
def test_prefill_and_steps_give_what_one_pass_gives(name, scan, ways):
    config, params = ways[name]
    config = config.with_compute(scan_layers=scan)
    params = stack_layers(params) if scan else params
    batch = make_batch(before=3, after=6)
    T = batch["input_ids"].shape[1]
    whole = look(config, params, batch).logits
    pad = 3
    cache = init_cache(config.text, config.compute, 1, pad + T + 1, config.sharing.image_attention)
    first = {
        **batch,
        "input_ids": jnp.pad(batch["input_ids"][:, : T - 4], ((0, 0), (pad, 0))),
        "attention_mask": jnp.pad(batch["attention_mask"][:, : T - 4], ((0, 0), (pad, 0))),
    }
    out = look(config, params, first, cache)
    parts = [out.logits[:, pad:]]
    for t in range(T - 4, T):
        out = look(config, params, {"input_ids": batch["input_ids"][:, t : t + 1]}, out.cache)
        parts.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-4)


@pytest.mark.parametrize("name", ["bidirectional", "cross"])
def test_a_second_picture_in_a_later_call_is_apart_from_the_first(name, ways):
    config, params = ways[name]
    batch = make_batch(tiles=2, before=3, after=2)
    cut = 3 + 5  # words, mark and first tile
    cache = init_cache(config.text, config.compute, 1, 40, config.sharing.image_attention)
    whole = look(config, params, batch).logits
    parts = []
    for tile, span in enumerate((slice(0, cut), slice(cut, None))):
        part = {
            "input_ids": batch["input_ids"][:, span],
            "pixel_values": batch["pixel_values"][:, tile : tile + 1],
            "tile_mask": jnp.ones((1, 1), bool),
        }
        out = look(config, params, part, cache)
        cache = out.cache
        parts.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-4)


@pytest.mark.parametrize("name", ["bidirectional", "cross"])
def test_packed_samples_do_not_see_each_other(name, ways):
    config, params = ways[name]
    one, two = make_batch(tiles=1, seed=1), make_batch(tiles=2, before=2, seed=2)
    lengths = [batch["input_ids"].shape[1] for batch in (one, two)]
    packed = {
        key: jnp.concatenate([one[key], two[key]], axis=1)
        for key in ("input_ids", "pixel_values", "tile_mask")
    }
    packed["segment_ids"] = jnp.repeat(jnp.array([1, 2]), jnp.array(lengths))[None]
    packed["positions"] = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    together = look(config, params, packed).logits
    apart = [look(config, params, batch).logits for batch in (one, two)]
    np.testing.assert_allclose(together, jnp.concatenate(apart, axis=1), atol=1e-4)


def test_bidirectional_tokens_see_their_own_tile_only(ways):
    config, params = ways["bidirectional"]
    batch = make_batch(before=3)
    features = jax.random.normal(jax.random.key(0), (1, 2, 4, config.text.hidden_size))

    def states(features):
        fed = {key: batch[key] for key in ("input_ids", "tile_mask")} | {"image_features": features}
        return look(config, params, fed, None, "none", ("hidden_states",)).captured["hidden_states"][-1, 0]

    changed = np.abs(states(features) - states(features.at[0, 0, 3].add(1.0))).max(axis=-1) > 1e-5
    first = 3 + 1  # words and the mark before the first tile
    assert not changed[:first].any()
    assert changed[first : first + 4].all()  # its own tile, earlier tokens too
    assert changed[first + 4 :].all()  # all that comes later
    later = np.abs(states(features) - states(features.at[0, 1, 3].add(1.0))).max(axis=-1) > 1e-5
    assert not later[: first + 5].any()


def test_cross_attention_starts_as_the_text_model(tiny_config, tiny_params):
    config, params = adapt(tiny_config, tiny_params, sharing=SharingConfig(image_attention="cross"))
    params = jax.tree.map(jnp.asarray, params)
    batch = make_batch()
    one = look(config, params, batch).logits
    two = look(config, params, {**batch, "pixel_values": batch["pixel_values"] * 3})
    np.testing.assert_array_equal(one, two.logits)


@pytest.mark.parametrize("name", ["word_mixture", "bidirectional", "cross"])
def test_generation_follows_the_model(name, ways, tiny_picture):
    config, params = ways[name]
    vlm = VLM(config=config, weights=params, processor=tiny_processor(), name=name)
    batch = vlm.prepare(text="What is <image> this?", images=[tiny_picture])
    tokens = vlm.generator.generate(batch.arrays(), max_new_tokens=6)[0].token_ids
    assert tokens
    arrays = batch.arrays()
    ids = np.concatenate([arrays["input_ids"], [tokens]], axis=1)
    given = {**arrays, "input_ids": ids, "attention_mask": np.ones_like(ids, bool)}
    best = look(config, params, given).logits[0].argmax(axis=-1)
    start = arrays["input_ids"].shape[1] - 1
    assert best[start : start + len(tokens)].tolist() == tokens


@pytest.fixture
def tiny_picture():
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


def test_norm_matched_tokens_have_the_words_length():
    tokens, _, params = connect(SharingConfig("norm_matched", {"bias": True}))
    length = float(jnp.sqrt(jnp.mean(jnp.sum(WORDS**2, axis=-1))))
    np.testing.assert_allclose(jnp.linalg.norm(tokens, axis=-1), length, rtol=1e-5)
    assert params["bias"].shape == (8,)


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_word_mixture_lies_in_the_hull_of_the_words(top_k):
    tokens, seen, _ = connect(SharingConfig("word_mixture", {"top_k": top_k}))
    np.testing.assert_allclose(seen["codes"].sum(axis=-1), 1, rtol=1e-5)
    assert ((seen["codes"] > 0).sum(axis=-1) == (top_k or len(WORDS))).all()
    np.testing.assert_allclose(tokens, seen["codes"] @ WORDS, atol=1e-5)
    cold = connect(SharingConfig("word_mixture", {"temperature": 1e-4}))[0]
    distance = jnp.abs(cold[..., None, :] - WORDS).max(axis=-1).min(axis=-1)
    np.testing.assert_allclose(distance, 0, atol=1e-4)  # one word each


@pytest.mark.parametrize(("live", "moves"), [(True, True), (False, False)])
def test_the_mixed_table_learns_only_where_it_is_live(live, moves):
    module = make_connector(SharingConfig("word_mixture", {"live": live}), 8, 2, "float32")
    params = module.init(jax.random.key(0), PATCHES, WORDS)
    gradient = jax.grad(lambda table: jnp.sum(module.apply(params, PATCHES, table) ** 2))(WORDS)
    assert bool(jnp.any(gradient)) == moves


def test_a_visual_table_may_start_from_words():
    _, seen, params = connect(SharingConfig("visual_table", {"rows": 10, "start": "words"}))
    assert seen["codes"].shape == (2, 4, 10)
    assert all((row == WORDS).all(axis=-1).any() for row in params["rows"])
    _, _, params = connect(SharingConfig("visual_table", {"rows": 10}))
    assert not any((row == WORDS).all(axis=-1).any() for row in params["rows"])


def test_nearest_word_replaces_and_passes_gradients_straight_through():
    tokens, seen, params = connect(SharingConfig("nearest_word"))
    linear = Connector(8, 2)
    projected = linear.apply({"params": params}, PATCHES)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    nearest = jnp.argmax(jnp.einsum("bqd,vd->bqv", unit(projected), unit(WORDS)), axis=-1)
    np.testing.assert_allclose(tokens, WORDS[nearest], atol=1e-6)
    apart = jnp.sum((unit(projected) - unit(WORDS[nearest])) ** 2, axis=-1)
    np.testing.assert_allclose(seen["residual"], apart, rtol=1e-4)
    weight = jax.random.normal(jax.random.key(9), tokens.shape)
    module = make_connector(SharingConfig("nearest_word"), 8, 2, "float32")
    through = jax.grad(lambda p: jnp.sum(weight * module.apply({"params": p}, PATCHES, WORDS)))(params)
    plain = jax.grad(lambda p: jnp.sum(weight * linear.apply({"params": p}, PATCHES)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), through, plain)
    by_distance = connect(SharingConfig("nearest_word", {"cosine": False}))[0]
    far = jnp.linalg.norm(projected[..., None, :] - WORDS, axis=-1)
    np.testing.assert_allclose(by_distance, WORDS[far.argmin(axis=-1)], atol=1e-6)


def test_input_gradient_scales_the_input_side_alone(tiny_config, tiny_params):
    tied = adapt(tiny_config, tiny_params, tie="table")
    ids = {"input_ids": jnp.array([[5, 9, 5]])}

    def table_gradient(scale, side):
        config = dataclasses.replace(tied[0], sharing=SharingConfig(input_gradient=scale))

        def loss(table):
            params = {**tied[1], "embedding": {"table": table}}
            model = SmolVLM(config)
            hidden = model.apply({"params": params}, ids, logits="none").hidden
            if side == "input":
                fixed = {**params, "embedding": {"table": jax.lax.stop_gradient(table)}}
                return jnp.sum(model.apply({"params": fixed}, hidden, method=SmolVLM.logits) ** 2)
            return jnp.sum(model.apply({"params": params}, hidden, method=SmolVLM.logits) ** 2)

        return jax.value_and_grad(loss)(tied[1]["embedding"]["table"])

    value, full = table_gradient(1.0, "both")
    _, inputs = table_gradient(1.0, "input")
    same, scaled = table_gradient(0.25, "both")
    np.testing.assert_allclose(same, value, rtol=1e-6)
    scale = float(jnp.abs(full).max())
    np.testing.assert_allclose(scaled / scale, (full - 0.75 * inputs) / scale, atol=1e-5)


def test_own_rows_are_the_same_model_until_one_table_is_frozen(tiny_config, tiny_params):
    batch = make_batch()
    for tie in (None, "table"):
        config, params = adapt(tiny_config, tiny_params, tie=tie)
        parted, rows = adapt(config, params, sharing=SharingConfig(own_rows=290))
        assert rows["embedding"]["rows"].shape == (30, 32)
        assert ("head_rows" in rows["embedding"]) == (tie is None)
        before = look(config, params, batch).logits
        after = look(parted, rows, batch).logits
        np.testing.assert_allclose(before, after, atol=1e-5)
        back, joined = adapt(parted, rows, sharing=RELEASED)
        assert back == config
        jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_adapt_keeps_what_fits_and_ties_as_told(tiny_config, tiny_params):
    config, params = adapt(tiny_config, tiny_params, sharing=SharingConfig("mlp"))
    assert set(params["connector"]) == {"fc1", "fc2"}
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], tiny_params["decoder"])
    table, head = (np.asarray(tiny_params["embedding"][name]) for name in ("table", "head"))
    for tie, rows in {"table": table, "head": head, "mean": 0.5 * (table + head)}.items():
        config, params = adapt(tiny_config, tiny_params, tie=tie)
        assert config.tie_embeddings
        assert list(params["embedding"]) == ["table"]
        np.testing.assert_allclose(params["embedding"]["table"], rows)
    back, params = adapt(config, params, tie="untied")
    assert not back.tie_embeddings
    np.testing.assert_array_equal(params["embedding"]["table"], params["embedding"]["head"])
    start = SharingConfig("visual_table", {"rows": 16, "start": "words"})
    rows = adapt(tiny_config, tiny_params, sharing=start)[1]["connector"]["rows"]
    assert all((table == row).all(axis=-1).any() for row in np.asarray(rows))


def test_the_encoder_may_have_no_layers(tiny_config):
    from smoljax.nn.smolvlm import abstract_params, init_params

    config = dataclasses.replace(tiny_config, vision=dataclasses.replace(tiny_config.vision, num_layers=0))
    own = config.with_compute(scan_layers=True)
    params = init_params(own, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(own))
    assert set(params["vision"]) == {"patch_embedding", "position_embedding", "final_norm"}
    scanned = look(own, params, make_batch()).logits
    np.testing.assert_allclose(look(config, unstack_layers(params), make_batch()).logits, scanned, atol=1e-4)


def test_a_connector_of_ones_own(tiny_config, tiny_params):
    @register("test_halved")
    class Halved(Connector):
        factor: float = 0.5

        @nn.compact
        def connect(self, patches, table):
            return self.factor * self.projected(patches), {}

    try:
        batch = make_batch()
        config, params = adapt(tiny_config, tiny_params, sharing=SharingConfig("test_halved"))
        params = jax.tree.map(jnp.asarray, params)
        half, whole = (
            look(*model, batch, None, "none", ("image_features",)).captured["image_features"]
            for model in ((config, params), (tiny_config, tiny_params))
        )
        np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-5)

        with pytest.raises(SmoljaxError, match="there is a connector 'mlp' already"):
            register("mlp")(Halved)
    finally:
        del CONNECTORS["test_halved"]


def test_options_of_ones_own_connector_keep_to_its_bounds():
    @register("test_bounded")
    class Bounded(Connector):
        above_zero = ("scale",)
        from_zero = ("hidden",)
        scale: float = 1.0
        hidden: int = 0
        note: str | None = None  # a default of None says nothing of the type
        steps: int = dataclasses.field(kw_only=True)  # neither does no default

        @nn.compact
        def connect(self, patches, table):
            return self.scale * self.projected(patches), {}

    def made(**options):
        return make_connector(SharingConfig("test_bounded", {"steps": 3, **options}), 8, 2, "float32")

    try:
        bounded = made(scale=2, note="any", hidden=0)
        assert (bounded.scale, bounded.note, bounded.hidden, bounded.steps) == (2, "any", 0, 3)
        for options, message in (
            ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
            ({"hidden": -1}, "hidden is -1; it must be 0 or more"),
            ({"hidden": 0.5}, "hidden is 0.5; it must be a int"),
        ):
            with pytest.raises(SmoljaxError, match=message):
                made(**options)
    finally:
        del CONNECTORS["test_bounded"]


def test_bad_ways_are_named(tiny_config):
    with pytest.raises(SmoljaxError, match="no connector 'liner'; known: linear, mlp"):
        make_connector(SharingConfig("liner"), 8, 2, "float32")
    with pytest.raises(SmoljaxError, match="'mlp' has no option depth; it has: hidden, norm"):
        make_connector(SharingConfig("mlp", {"depth": 2}), 8, 2, "float32")
    with pytest.raises(SmoljaxError, match="image_attention is 'both'"):
        SharingConfig(image_attention="both")
    with pytest.raises(SmoljaxError, match="input_gradient is -1"):
        SharingConfig(input_gradient=-1)
    for name, value in (("temperature", 0.0), ("top_k", -1), ("top_k", 2.5), ("live", 1)):
        with pytest.raises(SmoljaxError, match=f"'word_mixture': {name} is {value}; it must be"):
            make_connector(SharingConfig("word_mixture", {name: value}), 8, 2, "float32")
    with pytest.raises(SmoljaxError, match="own_rows is 320, no id"):
        dataclasses.replace(tiny_config, sharing=SharingConfig(own_rows=320))
    with pytest.raises(SmoljaxError, match="unknown sharing config key"):
        from_dict({**to_dict(tiny_config), "sharing": {"connecter": "mlp"}})
    with pytest.raises(ValueError, match="word table"):
        make_connector(SharingConfig("word_mixture"), 8, 2, "float32").init(jax.random.key(0), PATCHES)


def test_image_blocks_are_runs():
    mask = jnp.array([[False, True, True, False, True, False, True, True]])
    assert image_blocks(mask).tolist() == [[0, 1, 1, 0, 2, 0, 3, 3]]
