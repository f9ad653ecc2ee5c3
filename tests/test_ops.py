"""The array functions against formulas written out another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax.ops import attention as att
from smoljax.ops import image_tokens, norms, patches, rope, sampling

RNG = np.random.default_rng(0)


def rand(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_rms_norm_is_its_formula():
    x, scale = rand(2, 3, 8), rand(8)
    wide = np.asarray(x, np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(scale)
    np.testing.assert_allclose(norms.rms_norm(x, scale, 1e-5), want, atol=1e-6)


def test_layer_norm_is_its_formula():
    x, scale, bias = rand(2, 8) * 3 + 1, rand(8), rand(8)
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale) + np.asarray(
        bias
    )
    np.testing.assert_allclose(norms.layer_norm(x, scale, bias, 1e-6), want, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_statistics_are_float32(dtype):
    # In bfloat16 the mean of 4096 squares would stall at 256 equal summands.
    x = jnp.full((1, 4096), 3.0, dtype)
    assert float(norms.rms_norm(x, jnp.ones(4096), 1e-6)[0, 0]) == pytest.approx(1.0, abs=1e-6)


def test_epsilon_matters():
    x = jnp.full((1, 4), 1e-4)
    assert not np.allclose(norms.rms_norm(x, jnp.ones(4), 1e-5), norms.rms_norm(x, jnp.ones(4), 1e-6))


def test_rope_depends_on_distance_only():
    q, k = rand(1, 1, 1, 16), rand(1, 1, 1, 16)

    def score(m, n):
        rotated = [
            rope.apply_rope(x, *rope.rope_tables(jnp.array([[p]]), 16, 10_000.0)) for x, p in ((q, m), (k, n))
        ]
        return float((rotated[0] * rotated[1]).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)


def test_rope_is_half_split():
    # Rotating by a quarter turn at frequency 1 maps (x0, x_{H/2}) to (−x_{H/2}, x0).
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)
    cos, sin = jnp.array([[[0.0, 1.0, 0.0, 1.0]]]), jnp.array([[[1.0, 0.0, 1.0, 0.0]]])
    np.testing.assert_allclose(rope.apply_rope(x, cos, sin).ravel(), [-3, 2, 1, 4])


def test_rope_tables_stay_float32_far_out():
    near, _ = rope.rope_tables(jnp.array([[8000, 8001]]), 64, 1e5)
    assert near.dtype == jnp.float32
    assert abs(float(near[0, 0, 0] - np.cos(8000.0))) < 1e-5


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_attention_is_a_loop_over_heads(heads, kv_heads):
    q, k, v = rand(2, 5, heads, 8), rand(2, 7, kv_heads, 8), rand(2, 7, kv_heads, 8)
    mask = jnp.asarray(RNG.random((2, 5, 7)) > 0.3).at[:, :, 0].set(True)
    out, weights = att.attention(q, k, v, mask)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = np.einsum("bth,bsh->bts", q[:, :, head], k[:, :, shared]) / np.sqrt(8)
        scores = np.where(mask, scores, -np.inf)
        want = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[:, head], want, atol=1e-5)
        np.testing.assert_allclose(out[:, :, head], want @ np.asarray(v[:, :, shared]), atol=1e-5)


def test_causal_mask_sees_past_real_tokens_of_its_segment():
    valid = jnp.array([[False, True, True, True]])
    mask = att.causal_mask(valid, jnp.arange(4)[None], jnp.array([[0, 0, 1, 1]]))
    np.testing.assert_array_equal(
        mask[0].astype(int), [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    )


def test_positions_count_real_tokens():
    mask = jnp.array([[False, False, True, True, True]])
    np.testing.assert_array_equal(att.positions_from_mask(mask), [[0, 0, 0, 1, 2]])


@pytest.mark.parametrize(("heads", "kv_heads", "masked"), [(4, 4, False), (6, 2, True)])
def test_attention_by_heads_is_attention(heads, kv_heads, masked):
    """The same mix and the same gradients, rows that see nothing included, without the scores of all heads."""
    B, T, S, H = 2, 70, 90, 8
    q, k, v = (
        jax.random.normal(jax.random.key(i), (B, length, n, H))
        for i, (length, n) in enumerate(((T, heads), (S, kv_heads), (S, kv_heads)))
    )
    mask = jax.random.bernoulli(jax.random.key(3), 0.3, (B, T, S)).at[0, 0].set(False) if masked else None
    weigh = jax.random.normal(jax.random.key(4), q.shape)

    def plain(q, k, v):
        return (att.attention(q, k, v, mask)[0] * weigh).sum()

    def by_heads(q, k, v):
        return (att.attention_by_heads(q, k, v, mask) * weigh).sum()

    np.testing.assert_allclose(
        att.attention_by_heads(q, k, v, mask), att.attention(q, k, v, mask)[0], atol=2e-6
    )
    for one, other in zip(
        jax.grad(by_heads, (0, 1, 2))(q, k, v), jax.grad(plain, (0, 1, 2))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)
    scores = B * heads * T * S * 4
    held = jax.jit(att.attention_by_heads).lower(q, k, v, mask).compile().memory_analysis().temp_size_in_bytes
    assert held < 0.8 * scores + 8 * q.nbytes


@pytest.mark.parametrize("T", [64, 200, 256])
def test_causal_attention_leaves_keys_out_without_a_difference(T):
    """Blocks of 128 queries, the last one shorter; padding on the left; gradients too."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, T, n, 8)) for i, n in enumerate((6, 2, 2)))
    valid = jnp.ones((2, T), bool).at[0, :7].set(False)
    mask = att.causal_mask(valid, jnp.arange(T)[None])
    weigh = jax.random.normal(jax.random.key(4), q.shape).at[0, :7].set(0)

    def mixed(causal):
        return jax.value_and_grad(
            lambda *x: (att.attention_by_heads(*x, mask, causal) * weigh).sum(), (0, 1, 2)
        )(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mixed(True), mixed(False))
    plain = att.attention(q, k, v, mask)[0]
    shown = att.attention_by_heads(q, k, v, mask, True)
    np.testing.assert_allclose(shown[:, 7:], plain[:, 7:], atol=2e-6)


@pytest.mark.parametrize(("size", "patch"), [(8, 4), (11, 4), (384, 14)])
def test_patchify_is_the_valid_convolution(size, patch):
    pixels, kernel = rand(2, 3, size, size), rand(5, 3, patch, patch)
    want = jax.lax.conv_general_dilated(
        pixels, kernel, (patch, patch), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    got = patches.patchify(pixels, patch) @ kernel.reshape(5, -1).T
    np.testing.assert_allclose(got, want.reshape(2, 5, -1).transpose(0, 2, 1), atol=2e-4)


@pytest.mark.parametrize("grid", [14, 26, 27, 32])
def test_position_ids_of_full_tiles(grid):
    full = jnp.ones((1, grid, grid), bool)
    identity = np.arange(grid * grid)[None]
    np.testing.assert_array_equal(patches.position_ids(full, grid, "arange"), identity)
    np.testing.assert_array_equal(patches.position_ids(full, grid, "bucket"), identity)
    shifted = np.array([0, *range(grid - 1)])
    want = (shifted[:, None] * grid + shifted).reshape(1, -1)
    np.testing.assert_array_equal(patches.position_ids(full, grid, "hf_4_55"), want)


def test_bucket_stretches_a_partly_filled_tile():
    mask = jnp.zeros((1, 4, 4), bool).at[:, :2, :].set(True)
    ids = patches.position_ids(mask, 4, "bucket").reshape(4, 4)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3], [8, 9, 10, 11], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_patch_mask_needs_one_real_pixel():
    pixels = jnp.zeros((1, 9, 9), bool).at[0, 4, 0].set(True)
    np.testing.assert_array_equal(patches.patch_mask(pixels, 4)[0].astype(int), [[0, 0], [1, 0]])


@pytest.mark.parametrize(("side", "scale"), [(4, 2), (6, 3), (8, 4), (5, 1)])
def test_pixel_shuffle_is_its_index_formula(side, scale):
    x = rand(1, side * side, 3)
    grid = np.asarray(x).reshape(side, side, 3)
    got = np.asarray(image_tokens.pixel_shuffle(x, scale))[0]
    for token in range((side // scale) ** 2):
        row, col = divmod(token, side // scale)
        for channel in range(3 * scale * scale):
            block, d = divmod(channel, 3)
            down, right = divmod(block, scale)
            assert got[token, channel] == grid[row * scale + down, col * scale + right, d]


def test_pixel_shuffle_refuses_a_grid_that_does_not_divide():
    with pytest.raises(ValueError, match="divisible"):
        image_tokens.pixel_shuffle(rand(1, 9, 2), 2)


def test_merge_takes_real_tiles_in_order():
    features = jnp.arange(1.0, 7.0).reshape(1, 3, 2, 1)
    is_image = jnp.array([[False, True, True, False, True, True]])
    out = image_tokens.merge_image_features(
        jnp.zeros((1, 6, 1)), is_image, features, jnp.array([[True, False, True]])
    )
    np.testing.assert_array_equal(out.ravel(), [0, 1, 2, 0, 5, 6])


def test_merge_with_too_few_features_is_loud():
    out = image_tokens.merge_image_features(
        jnp.zeros((1, 3, 1)),
        jnp.array([[True, True, True]]),
        jnp.ones((1, 2, 1, 1)),
        jnp.array([[True, True]]),
    )
    np.testing.assert_array_equal(np.isnan(out.ravel()), [False, False, True])


def test_merge_gives_the_image_row_of_the_table_no_gradient():
    def total(table, features):
        x = table[jnp.array([[0, 1, 2]])]
        merged = image_tokens.merge_image_features(
            x, jnp.array([[False, True, False]]), features, jnp.array([[True]])
        )
        return merged.sum()

    by_table, by_features = jax.grad(total, argnums=(0, 1))(jnp.ones((3, 2)), jnp.ones((1, 1, 1, 2)))
    np.testing.assert_array_equal(by_table, [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(by_features.ravel(), [1, 1])


def test_repetition_penalty_pushes_seen_tokens_down():
    logits, seen = jnp.array([[2.0, -2.0, 2.0, -2.0]]), jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(sampling.penalise_repetition(logits, seen, 2.0), [[1.0, -4.0, 2.0, -2.0]])


def test_top_k_and_top_p():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = lambda k, p: np.isfinite(np.asarray(sampling.filter_top(logits, k, p)))[0].tolist()  # noqa: E731
    assert kept(4, 1.0) == [True, True, True, True]
    assert kept(2, 1.0) == [True, True, False, False]
    assert kept(4, 0.65) == [True, True, False, False]
    assert kept(4, 0.75) == [True, True, True, False]
    assert kept(4, 1e-9) == [True, False, False, False]
    assert kept(2, 0.5) == [True, False, False, False]  # of the two kept, the best holds 57 %


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.tile(jnp.array([[0.5, 0.3, 0.2]]), (4000, 1)))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.bincount(np.asarray(sampling.sample(logits, keys, 1.0, 3, 1.0)), minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.2], atol=0.03)
