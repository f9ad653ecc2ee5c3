"""The whole network: what must change when something is changed, and what must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import presets
from smoljax.nn.cache import init_cache
from smoljax.nn.decoder import Decoder
from smoljax.nn.patch_encoder import PatchEncoder
from smoljax.nn.smolvlm import CAPTURES, SmolVLM, abstract_params, count_params, init_params
from smoljax.nn.stacking import stack_layers, truncate_layers, unstack_layers

IMAGE = 300
ATOL = 1e-4  # float32 rounding of logits of size 5 through 5 layers, summed in another order


def make_batch(tiles=2, before=4, after=9, seed=0):
    rng = np.random.default_rng(seed)
    ids = [*rng.integers(1, 290, before), *[IMAGE] * (4 * tiles), *rng.integers(1, 290, after)]
    return {
        "input_ids": jnp.asarray([ids], jnp.int32),
        "attention_mask": jnp.ones((1, len(ids)), bool),
        "pixel_values": jnp.asarray(rng.standard_normal((1, tiles, 3, 32, 32)), jnp.float32),
        "tile_mask": jnp.ones((1, tiles), bool),
    }


@pytest.fixture(scope="module")
def run(tiny_config, tiny_params):
    forward = jax.jit(lambda batch: SmolVLM(tiny_config).apply({"params": tiny_params}, batch).logits)
    return lambda batch: np.asarray(forward(batch))


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("smolvlm-256m", 471, 256_484_928),
        ("smolvlm2-256m", 471, 256_484_928),
        ("smolvlm-500m", 489, 507_482_304),
        ("smolvlm2-500m", 489, 507_482_304),
        ("smolvlm-2.2b", 657, 2_246_272_880),
        ("smolvlm2-2.2b", 657, 2_246_784_880),
        ("granite-docling-258m", 470, 257_517_120),
        ("smollm2-135m", 272, 134_515_008),
        ("smollm2-360m", 290, 361_821_120),
        ("smollm2-1.7b", 218, 1_711_376_384),
    ],
)
def test_published_counts(name, tensors, parameters):
    config = presets.get(name)
    assert count_params(abstract_params(config)) == (tensors, parameters)
    stacked = abstract_params(config.with_compute(scan_layers=True))
    assert count_params(stacked)[1] == parameters
    assert unstack_layers(stacked) == abstract_params(config)


@pytest.mark.parametrize("scan", [False, True])
def test_abstract_params_are_those_of_init(tiny_config, scan):
    config = tiny_config.with_compute(scan_layers=scan)
    traced = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert traced == abstract_params(config)


@pytest.mark.parametrize("position", [0, 3, 14])  # before and behind the image tokens
def test_a_token_changes_nothing_before_it_and_everything_after(run, position):
    batch = make_batch()
    ids = batch["input_ids"]
    changed = run({**batch, "input_ids": ids.at[0, position].set((ids[0, position] + 7) % 290)})
    moved = np.abs(changed - run(batch)).max(-1)[0]
    assert (moved[:position] == 0).all()
    assert (moved[position:] > 1e-4).all()


def test_a_pixel_changes_everything_from_its_tile_on(run):
    batch = make_batch(tiles=2)
    changed = {**batch, "pixel_values": batch["pixel_values"].at[0, 1, 0, 3, 3].add(3.0)}
    moved = np.abs(run(changed) - run(batch)).max(-1)[0]
    first = 4 + 4  # before the second tile's tokens
    assert (moved[:first] == 0).all()
    assert (moved[first:] > 1e-6).all()


def test_the_order_of_tiles_matters(run):
    batch = make_batch(tiles=2)
    assert np.abs(run({**batch, "pixel_values": batch["pixel_values"][:, ::-1]}) - run(batch)).max() > 1e-3


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def stepper(request, tiny_config, tiny_params):
    """(config, jitted step with cache) in both layouts."""
    config = tiny_config.with_compute(scan_layers=request.param)
    params = stack_layers(tiny_params) if request.param else tiny_params

    @jax.jit
    def step(batch, cache):
        out = SmolVLM(config).apply({"params": params}, batch, cache)
        return out.logits, out.cache

    return config, step


@pytest.mark.parametrize("split", [1, 15])
def test_cached_decoding_equals_the_full_forward(stepper, run, split):
    config, step = stepper
    batch = make_batch(tiles=0, after=16)
    ids = batch["input_ids"]
    cache = init_cache(config.text, config.compute, 1, ids.shape[1] + 3)
    got = []
    for start, stop in ((0, split), *((t, t + 1) for t in range(split, ids.shape[1]))):
        logits, cache = step({"input_ids": ids[:, start:stop]}, cache)
        got.append(logits)
    want = run({"input_ids": ids, "attention_mask": batch["attention_mask"]})
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), want, atol=ATOL)


def test_cached_decoding_behind_a_picture(stepper, run):
    config, step = stepper
    batch = make_batch(tiles=2)
    cache = init_cache(config.text, config.compute, 1, 32)
    first, cache = step({**batch, "input_ids": batch["input_ids"][:, :14], "attention_mask": None}, cache)
    got = [first]
    for t in range(14, batch["input_ids"].shape[1]):
        logits, cache = step({"input_ids": batch["input_ids"][:, t : t + 1]}, cache)
        got.append(logits)
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), run(batch), atol=ATOL)


def test_cached_rows_may_stand_at_different_slots(stepper, run):
    config, step = stepper
    ids = jnp.asarray(np.random.default_rng(1).integers(1, 290, (2, 6)))
    full = run({"input_ids": ids})
    _, cache = step({"input_ids": ids[:, :4]}, init_cache(config.text, config.compute, 2, 8))
    # Row 1 forgets its last token and reads it again, beside row 0's fifth.
    cache = cache.replace(index=jnp.array([4, 3]), valid=cache.valid.at[1, 3].set(False))
    logits, _ = step({"input_ids": jnp.stack([ids[0, 4], ids[1, 3]])[:, None]}, cache)
    np.testing.assert_allclose(logits[0, 0], full[0, 4], atol=ATOL)
    np.testing.assert_allclose(logits[1, 0], full[1, 3], atol=ATOL)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_rows(run, side):
    singles = [make_batch(1, 2, 9, seed=1), make_batch(3, 5, 12, seed=2)]
    length, tiles = max(b["input_ids"].shape[1] for b in singles), 3

    def padded(batch):
        extra, more = length - batch["input_ids"].shape[1], tiles - batch["tile_mask"].shape[1]
        pad = (extra, 0) if side == "left" else (0, extra)
        return {
            "input_ids": jnp.pad(batch["input_ids"], ((0, 0), pad), constant_values=5),
            "attention_mask": jnp.pad(batch["attention_mask"], ((0, 0), pad)),
            "pixel_values": jnp.pad(batch["pixel_values"], ((0, 0), (0, more), (0, 0), (0, 0), (0, 0))),
            "tile_mask": jnp.pad(batch["tile_mask"], ((0, 0), (0, more))),
        }

    rows = [padded(batch) for batch in singles]
    together = run({key: jnp.concatenate([row[key] for row in rows]) for key in rows[0]})
    for row, single in enumerate(singles):
        real = np.asarray(rows[row]["attention_mask"][0])
        np.testing.assert_allclose(together[row][real], run(single)[0], atol=ATOL)


def test_packed_samples_do_not_see_each_other(tiny_config, tiny_params, run):
    first, second = make_batch(0, 3, 5, seed=3), make_batch(0, 4, 6, seed=4)
    text = [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in (first, second)]
    lengths = [batch["input_ids"].shape[1] for batch in text]
    packed = {
        "input_ids": jnp.concatenate([batch["input_ids"] for batch in text], axis=1),
        "segment_ids": jnp.asarray([[0] * lengths[0] + [1] * lengths[1]]),
        "positions": jnp.asarray([[*range(lengths[0]), *range(lengths[1])]]),
    }
    got = run(packed)[0]
    np.testing.assert_allclose(got[: lengths[0]], run(text[0])[0], atol=ATOL)
    np.testing.assert_allclose(got[lengths[0] :], run(text[1])[0], atol=ATOL)


def loss(config, params):
    return jnp.square(SmolVLM(config).apply({"params": params}, make_batch()).logits).mean()


@pytest.fixture(scope="module")
def loss_and_gradients(tiny_config, tiny_params):
    return jax.jit(jax.value_and_grad(lambda p: loss(tiny_config, p)))(tiny_params)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scanned_equals_unrolled_with_gradients(tiny_config, tiny_params, loss_and_gradients, remat):
    scanned = tiny_config.with_compute(scan_layers=True, remat=remat)
    want, by_layer = loss_and_gradients
    got, stacked = jax.jit(jax.value_and_grad(lambda p: loss(scanned, p)))(stack_layers(tiny_params))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ATOL), unstack_layers(stacked), by_layer)


def test_stacking_round_trip_is_exact(tiny_params):
    again = unstack_layers(stack_layers(tiny_params))
    assert jax.tree.structure(again) == jax.tree.structure(tiny_params)
    jax.tree.map(np.testing.assert_array_equal, again, tiny_params)


@pytest.mark.parametrize("scan", [False, True])
def test_capture(tiny_config, tiny_params, scan):
    batch, config = make_batch(tiles=2), tiny_config.with_compute(scan_layers=scan)
    params = stack_layers(tiny_params) if scan else tiny_params
    out = jax.jit(lambda p, b: SmolVLM(config, CAPTURES).apply({"params": p}, b))(params, batch)
    T = batch["input_ids"].shape[1]
    assert {key: value.shape for key, value in out.captured.items()} == {
        "embeddings": (1, T, 32),
        "image_features": (1, 2, 4, 32),
        "hidden_states": (3, 1, T, 32),
        "attention": (3, 1, 4, T, T),
        "vision_hidden_states": (2, 2, 16, 24),
        "vision_attention": (2, 2, 2, 16, 16),
    }
    np.testing.assert_allclose(out.captured["attention"].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(
        out.captured["embeddings"][0, 4:12], out.captured["image_features"].reshape(8, 32)
    )


def test_nothing_is_captured_unless_asked_for(tiny_config, tiny_params):
    assert jax.jit(lambda: SmolVLM(tiny_config).apply({"params": tiny_params}, make_batch()).captured)() == {}


def test_capture_of_an_unknown_name_is_an_error(tiny_config, tiny_params):
    with pytest.raises(ValueError, match="known: embeddings"):
        SmolVLM(tiny_config, ("hiden",)).apply({"params": tiny_params}, make_batch())


def test_the_backbone_alone_and_truncated(tiny_config, tiny_params):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 32)), jnp.float32)
    whole = Decoder(tiny_config.text, capture=("hidden_states",))
    _, _, seen = whole.apply({"params": tiny_params["decoder"]}, x)
    short = Decoder(dataclasses.replace(tiny_config.text, num_layers=2), capture=("hidden_states",))
    _, _, cut = short.apply({"params": truncate_layers(tiny_params["decoder"], 2)}, x)
    np.testing.assert_allclose(cut["hidden_states"], seen["hidden_states"][:2], atol=1e-6)
    stacked = truncate_layers(stack_layers(tiny_params["decoder"]), 2)
    assert jax.tree.leaves(stacked["layers"])[0].shape[0] == 2


def test_the_encoder_alone(tiny_config, tiny_params):
    batch = make_batch(tiles=2)
    patches, _ = PatchEncoder(tiny_config.vision).apply(
        {"params": tiny_params["vision"]}, batch["pixel_values"][0]
    )
    assert patches.shape == (2, 16, 24)
    by_vmap = jax.vmap(
        lambda tile: PatchEncoder(tiny_config.vision).apply({"params": tiny_params["vision"]}, tile[None])[0][
            0
        ]
    )(batch["pixel_values"][0])
    np.testing.assert_allclose(by_vmap, patches, atol=1e-5)


def test_masked_patches_do_not_reach_the_others(tiny_config, tiny_params):
    pixels = make_batch(tiles=1)["pixel_values"][0]
    seen = jnp.zeros((1, 4, 4), bool).at[:, :2, :3].set(True)
    encode = lambda p: PatchEncoder(tiny_config.vision).apply({"params": tiny_params["vision"]}, p, seen)[0]  # noqa: E731
    other = pixels.at[:, :, 16:, :].set(9.0).at[:, :, :, 24:].set(9.0)
    inside = np.asarray(seen.reshape(-1))
    np.testing.assert_allclose(encode(pixels)[0][inside], encode(other)[0][inside], atol=1e-5)


def test_bfloat16_compute_stays_close_and_logits_are_float32(tiny_config, tiny_params, run):
    batch = make_batch()
    out = SmolVLM(tiny_config.with_compute(dtype="bfloat16")).apply({"params": tiny_params}, batch)
    assert out.logits.dtype == jnp.float32
    assert out.hidden.dtype == jnp.bfloat16
    want = run(batch)
    assert np.abs(out.logits - want).max() < 0.05 * np.abs(want).max()


def test_decoding_never_merges(tiny_config, tiny_params):
    # An <image> id without pictures is an ordinary word with its own row of the table.
    module = SmolVLM(tiny_config, ("embeddings",))
    out = module.apply({"params": tiny_params}, {"input_ids": jnp.array([[1, IMAGE, 2]])})
    table = tiny_params["embedding"]["table"]
    np.testing.assert_array_equal(out.captured["embeddings"][0], table[jnp.array([1, IMAGE, 2])])


def test_a_full_cache_is_loud(stepper):
    config, step = stepper
    cache = init_cache(config.text, config.compute, 1, 4)
    _, cache = step({"input_ids": jnp.ones((1, 4), jnp.int32)}, cache)
    logits, _ = step({"input_ids": jnp.ones((1, 1), jnp.int32)}, cache)
    assert np.isnan(logits).all()
    with pytest.raises(ValueError, match="do not fit"):
        step({"input_ids": jnp.ones((1, 5), jnp.int32)}, cache)


def test_tied_logits_use_the_table():
    config = presets.tiny(tie_embeddings=True)
    assert "head" not in abstract_params(config)["embedding"]
