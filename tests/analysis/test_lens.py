"""Nearest words, probes, codes, retrieval: cases that can be counted by hand."""

import numpy as np
import pytest

from smoljax.analysis import codes, lens, probes, retrieval

ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [10.0, 10.0], [-1.0, 0.0]])


def test_each_metric_has_its_own_nearest_row():
    x = np.array([[1.0, 0.6]])
    assert lens.nearest_rows(x, ROWS, 2, "cosine").tolist() == [[2, 0]]
    assert lens.nearest_rows(x, ROWS, 2, "l2").tolist() == [[0, 1]]
    assert lens.nearest_rows(x, ROWS, 3, "dot").tolist() == [[2, 0, 1]]
    with pytest.raises(ValueError, match="metric is 'angle'"):
        lens.nearest_rows(x, ROWS, 1, "angle")


def test_hit_rate_counts_tokens_and_its_null_shuffles_them():
    found = np.array([[1, 5], [2, 6], [9, 9], [4, 1]])
    true = [{1}, {6}, {3}, {7, 8}]
    assert lens.hit_rate(found, true) == 0.5
    assert lens.hit_rate(found[:, :1], true) == 0.25
    # Every token is told the same word and half of the tokens show it: chance is a half.
    same, half = np.full((100, 1), 7), [{7}] * 50 + [{8}] * 50
    assert lens.hit_rate(same, half) == lens.hit_rate_null(same, half) == pytest.approx(0.5)
    # Each token is told its own of 100 words: all right, by chance one in a hundred.
    own = np.arange(100)[:, None]
    assert lens.hit_rate(own, [{i} for i in range(100)]) == 1.0
    assert lens.hit_rate_null(own, [{i} for i in range(100)]) == pytest.approx(0.01, abs=0.01)
    assert np.isnan(lens.hit_rate(np.zeros((0, 1), int), []))


def test_word_entropy_of_a_hub_and_of_many_words():
    assert lens.word_entropy(np.full(50, 3)) == 0
    assert lens.word_entropy(np.arange(64)) == pytest.approx(6.0)


def test_a_probe_reads_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 3000)
    groups = np.arange(3000) // 10
    there = np.eye(4)[labels] @ rng.normal(size=(4, 12)) + 0.05 * rng.normal(size=(3000, 12))
    assert probes.probe_accuracy(there, labels, groups)["accuracy"] > 0.99
    found = probes.probe_accuracy(rng.normal(size=(3000, 12)), labels, groups)
    assert found["accuracy"] == pytest.approx(0.25, abs=0.04)
    assert found["majority"] == pytest.approx(0.25, abs=0.03)
    assert found["n"] == pytest.approx(1500, abs=10)


def test_a_probe_never_tests_on_a_picture_it_was_fitted_to():
    # A vector names its picture exactly, and labels go by picture: only leaking could tell them.
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 20)
    labels = rng.integers(0, 2, 60)[groups]
    names = rng.normal(size=(60, 200))[groups]
    assert probes.probe_accuracy(names, labels, groups)["accuracy"] < 0.75
    with pytest.raises(ValueError, match="two groups"):
        probes.probe_accuracy(names, labels, np.zeros(1200))


def test_code_use_of_one_row_all_rows_and_mixtures():
    one = np.zeros((10, 8))
    one[:, 3] = 1
    assert codes.code_use(one) == pytest.approx({"perplexity": 1, "token_perplexity": 1, "dead": 7 / 8})
    each = np.eye(8)
    assert codes.code_use(each) == pytest.approx({"perplexity": 8, "token_perplexity": 1, "dead": 0})
    even = np.full((5, 8), 1 / 8)
    assert codes.code_use(even) == pytest.approx({"perplexity": 8, "token_perplexity": 8, "dead": 0})


def test_retrieval_by_place_and_without_the_gap():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 20))
    far = x + 100
    assert retrieval.pooled_retrieval(far, x)["image_to_text_r1"] == 1.0
    shuffled = retrieval.pooled_retrieval(x, np.roll(x, 1, axis=0))
    assert shuffled["text_to_image_r1"] < 0.1
    assert retrieval.pooled_retrieval(x, rng.normal(size=(50, 20)))["image_to_text_r10"] < 0.45
