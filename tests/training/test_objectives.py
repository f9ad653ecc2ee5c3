"""The objectives against their definitions written out naively."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoljax.training.objectives.contrastive import gather, infonce_loss, sigmoid_loss
from smoljax.training.objectives.dense import dense_sums, patch_weights
from smoljax.training.objectives.distillation import hidden_sum, kl_sum
from smoljax.training.objectives.next_token import balanced_weights, next_token_sums, shift
from smoljax.training.objectives.sharing import bag_of_words_sum, centroid_gap, tie_distance

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(23, 8)).astype(np.float32)
HEAD = RNG.normal(size=(11, 8)).astype(np.float32)
TARGETS = RNG.integers(0, 11, 23).astype(np.int32)
MASK = RNG.random(23) < 0.6


@pytest.mark.parametrize("chunk", [4, 23, 1024])
def test_next_token_loss_and_gradient_do_not_depend_on_the_chunk(chunk):
    def chunked(hidden, head):
        return next_token_sums(hidden, head, TARGETS, MASK, chunk=chunk, z_loss=0.01)[0]

    def whole(hidden, head):
        scores = hidden @ head.T
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, TARGETS)
        return jnp.sum((losses + 0.01 * jax.nn.logsumexp(scores, axis=-1) ** 2) * MASK)

    ours, ours_grad = jax.value_and_grad(chunked, argnums=(0, 1))(HIDDEN, HEAD)
    theirs, theirs_grad = jax.value_and_grad(whole, argnums=(0, 1))(HIDDEN, HEAD)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_scores_of_a_whole_sequence_never_exist():
    hidden, head = jnp.zeros((4096, 8)), jnp.zeros((5000, 8))
    mask = jnp.ones(4096, bool)
    ids = jnp.zeros(4096, jnp.int32)
    grad = jax.grad(lambda h, w: next_token_sums(h, w, ids, mask, chunk=64)[0], argnums=(0, 1))
    memory = jax.jit(grad).lower(hidden, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * 5000 * 4 / 4


def test_targets_stop_where_a_branch_begins():
    ids = np.array([[5, 6, 7, 8, 9, 3]])
    mask = np.array([[False, True, True, True, True, False]])
    positions = np.array([[0, 1, 2, 2, 3, 0]])  # trunk 0 1, branch 2, another branch 2 3, a new segment 0
    targets, learned = shift(ids, mask, positions)
    assert targets[0, :5].tolist() == [6, 7, 8, 9, 3]
    assert learned[0].tolist() == [True, True, False, True, False, False]


def test_balance_weighs_conversations_and_not_tokens():
    mask = np.array([[False, True, True, True, True, True, False, False], [True, False, False, True] * 2])
    segments = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1] * 8])
    branches = np.array([[0, 1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 2, 2, 1, 1]])
    all_alike = balanced_weights(mask, segments, branches, 0.0)
    assert all_alike.tolist() == mask.astype(float).tolist()
    # Row 0: four tokens of branch 1 in segment 1, one in segment 2. Row 1: one each; branch 1 comes back as another.
    found = balanced_weights(mask, segments, branches, 0.5)
    assert found[0].tolist() == [0, 0.5, 0.5, 0.5, 0.5, 1, 0, 0]
    assert found[1].tolist() == [1, 0, 0, 1, 1, 0, 0, 1]
    by_talk = balanced_weights(mask, segments, branches, 1.0)
    np.testing.assert_allclose(by_talk[0].sum(), 2.0)


def test_accuracy_counts_every_learned_token_once_whatever_it_weighs():
    weights = MASK * np.where(np.arange(23) % 2, 0.25, 1.0)
    best = (HIDDEN @ HEAD.T).argmax(axis=-1).astype(np.int32)
    total, right = next_token_sums(HIDDEN, HEAD, best, weights)
    assert int(right) == MASK.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(HIDDEN @ HEAD.T, best)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-5)


def test_contrastive_losses_against_loops():
    image, text = jnp.asarray(RNG.normal(size=(2, 5, 8)).astype(np.float32))
    valid = np.array([True, True, False, True, True])
    a = image / np.linalg.norm(image, axis=1, keepdims=True)
    b = text / np.linalg.norm(text, axis=1, keepdims=True)
    rows = np.flatnonzero(valid)
    expected = 0.0
    for i in rows:
        for j in rows:
            logit = 3.0 * a[i] @ b[j] - 1.5
            expected += np.log1p(np.exp(-logit if i == j else logit))
    got = sigmoid_loss(image, text, valid, np.log(3.0), -1.5)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    logits = 3.0 * a[rows] @ b[rows].T
    order = jnp.arange(len(rows))
    expected = 0.5 * (
        optax.softmax_cross_entropy_with_integer_labels(logits, order).sum()
        + optax.softmax_cross_entropy_with_integer_labels(logits.T, order).sum()
    )
    np.testing.assert_allclose(infonce_loss(image, text, valid, np.log(3.0)), expected, rtol=1e-5)


def test_gather_takes_pairs_and_marks_what_is_missing():
    hidden = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    picked, real = gather(hidden, np.array([[2, -1], [0, 1]]))
    assert picked.tolist() == [[4, 5], [0, 1], [6, 7], [8, 9]]
    assert real.tolist() == [True, False, True, True]


def test_dense_weights_objects_and_counts_hits():
    patches = np.eye(3, dtype=np.float32)[None]
    labels = np.array([[0, 1, 2]])
    kernel, bias = 4 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    kernel[2] = 0  # the third patch is undecided
    loss, right, shown = dense_sums(patches, kernel, bias, labels, 5.0)
    sure = np.log(np.exp(4) + 2) - 4
    np.testing.assert_allclose(loss, sure + 5 * sure + 5 * np.log(3), rtol=1e-5)
    assert patch_weights(labels, 5.0).sum() == 11.0
    assert int(shown) == 2
    assert int(right) == 2  # a tie counts for the label
    # What is unknown neither costs nor counts.
    unknown = np.array([[0, -1, -1]])
    loss, right, shown = dense_sums(patches, kernel, bias, unknown, 5.0)
    np.testing.assert_allclose(loss, sure, rtol=1e-5)
    assert (int(right), int(shown), float(patch_weights(unknown, 5.0).sum())) == (0, 0, 1.0)


def test_distillation_is_zero_for_the_teacher_itself_and_matches_the_formula():
    assert abs(float(kl_sum(HIDDEN, HEAD, HIDDEN, HEAD, MASK, temperature=2.0))) < 1e-5
    other = RNG.normal(size=(23, 6)).astype(np.float32)
    table = RNG.normal(size=(11, 6)).astype(np.float32)
    got = kl_sum(HIDDEN, HEAD, other, table, MASK, temperature=2.0, chunk=5)
    p = jax.nn.softmax(other @ table.T / 2)
    expected = 4 * np.sum(MASK[:, None] * p * (jnp.log(p) - jax.nn.log_softmax(HIDDEN @ HEAD.T / 2)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    projection = RNG.normal(size=(8, 6)).astype(np.float32)
    error = np.mean((HIDDEN @ projection - other) ** 2, axis=1)
    np.testing.assert_allclose(hidden_sum(HIDDEN, other, projection, MASK), (error * MASK).sum(), rtol=1e-5)


def sharing_batch():
    """Two rows of 6: the first holds two samples, of two pictures' tokens and one word each way."""
    x = jnp.asarray(RNG.normal(size=(2, 6, 8)).astype(np.float32))
    is_image = jnp.asarray([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    weights = jnp.asarray([[0, 0, 1, 0, 1, 0.5], [0, 1, 0, 1, 0, 0]])
    targets = jnp.asarray(RNG.integers(0, 11, (2, 6)))
    return x, is_image, segments, weights, targets


def test_bag_of_words_reads_each_samples_own_image_tokens():
    x, is_image, segments, weights, targets = sharing_batch()
    total = bag_of_words_sum(x, is_image, HEAD, targets, weights, segments, chunk=4)
    by_hand = 0.0
    for mean, places in ((x[0, :2].mean(0), [2]), (x[0, 3], [4, 5])):
        scores = jax.nn.log_softmax(HEAD @ mean)
        by_hand -= sum(weights[0, t] * scores[targets[0, t]] for t in places)
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)  # the second row has no picture: nothing


def test_centroid_gap_is_the_distance_of_means_over_the_words_length():
    x, is_image, segments, *_ = sharing_batch()
    is_word = (segments > 0) & ~is_image
    image, words = np.asarray(x)[np.asarray(is_image)], np.asarray(x)[np.asarray(is_word)]
    expected = np.sum((image.mean(0) - words.mean(0)) ** 2) / np.sum(words**2, axis=-1).mean()
    np.testing.assert_allclose(centroid_gap(x, is_image, is_word), expected, rtol=1e-5)
    assert centroid_gap(x, jnp.zeros_like(is_image), is_word) == 0


def test_tie_distance_is_nought_for_one_table_and_two_for_strangers():
    assert tie_distance(HEAD, HEAD) == 0
    strangers = RNG.normal(size=(2, 4000, 8))
    np.testing.assert_allclose(tie_distance(*map(jnp.asarray, strangers)), 2.0, rtol=0.03)
    # The size is not differentiated: shrinking both tables is no way out.
    gradient = jax.grad(tie_distance)(jnp.asarray(HEAD), jnp.asarray(2 * HEAD))
    np.testing.assert_allclose(gradient, -2 * HEAD / (2.5 * np.sum(HEAD**2)), rtol=1e-4)
