"""Metrics against answers worked out by hand."""

import math

import numpy as np
import pytest

from smoljax.errors import SmoljaxError
from smoljax.evaluation.metrics.answers import exact_match, normalise, reading_match, vqa_soft
from smoljax.evaluation.metrics.bleu import bleu, bleu_counts
from smoljax.evaluation.metrics.bootstrap import bootstrap, bootstrap_ratio
from smoljax.evaluation.metrics.boxes import iou, points_at
from smoljax.evaluation.metrics.cider import cider_d
from smoljax.evaluation.metrics.facts import f1, fact_counts
from smoljax.evaluation.metrics.retrieval import ranks, recall_at
from smoljax.evaluation.metrics.rouge import common_subsequence, rouge_l


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The red circle.", "red circle"),
        ("Two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5 km", "3.5 km"),
        ("dont know", "don't know"),
        ("red/blue", "red blue"),
        ("yes, it is!", "yes it is"),
        ("A", "a"),
        (" \n", ""),
        ("well", "well"),
    ],
)
def test_answers_are_compared_in_normal_form(answer, normal):
    assert normalise(answer) == normal


def test_exact_match_takes_any_accepted_answer():
    assert exact_match("A cat", ["dog", "Cat."]) == 1
    assert exact_match("cats", ["dog", "cat"]) == 0
    assert exact_match("", ["cat"]) == 0


def test_the_soft_rule_leaves_one_person_out():
    # Two of ten say "cat": leaving one of them out leaves 1/3 (twice), leaving another out 2/3 (eight times).
    two = ["cat"] * 2 + [f"other {i}" for i in range(8)]
    assert vqa_soft("cat", two) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_soft("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_soft("cat", ["cat"] * 4 + ["dog"] * 6) == 1
    assert vqa_soft("cow", two) == 0
    assert vqa_soft("cat", ["cat", "kitten"]) == 1  # a list, not a poll


def test_reading_is_letter_by_letter():
    assert reading_match("cat ", ["CAT"]) == 1
    assert reading_match("10", ["TEN"]) == 0
    assert exact_match("10", ["TEN"]) == 1
    assert reading_match("the cat", ["CAT"]) == 0


def test_bleu_of_a_hand_worked_corpus():
    reference = ["a", "red", "circle", "on", "a", "sand", "plane"]
    assert bleu(bleu_counts(reference, [reference])) == pytest.approx(1, abs=1e-6)
    counts = bleu_counts(["a", "red", "circle", "on", "grass"], [reference, ["red"]])
    assert counts.tolist() == [4, 3, 2, 1, 5, 4, 3, 2, 5, 7]
    want = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 7 / 5)
    assert bleu(counts) == pytest.approx(want, abs=1e-6)
    assert bleu(bleu_counts(["dog"], [reference])) == pytest.approx(0, abs=1e-5)
    # Clipped: "a" twice in the reference, five times here.
    assert bleu_counts(["a"] * 5, [reference])[0] == 2


def test_rouge_of_hand_worked_captions():
    assert common_subsequence(["a", "b", "c", "d", "e"], ["b", "x", "d", "e", "a"]) == 3
    # Precision 3/4, recall 3/5.
    want = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert rouge_l(["a", "b", "c", "z"], [["a", "b", "c", "d", "e"]]) == pytest.approx(want)
    assert rouge_l([], [["a"]]) == 0
    assert rouge_l(["b"], [["a"]]) == 0


def test_cider_of_hand_worked_captions():
    # Four words are four unigrams, three pairs, two triples, one quadruple; all rare, all right.
    right = cider_d(
        [["a", "b", "c", "d"], ["e", "f", "g", "h"]], [[["a", "b", "c", "d"]], [["e", "f", "g", "h"]]]
    )
    np.testing.assert_allclose(right, 10)
    # One word right of two, in a corpus of two pictures where every word has idf log 2: cosine 1/2 for words
    # and 0 for pairs, triples and quadruples, of equal length.
    half = cider_d([["a", "x"], ["c", "d"]], [[["a", "b"]], [["c", "d"]]])
    np.testing.assert_allclose(half, [10 / 4 * 0.5, 10 / 4 * 2])
    # Two words longer: the Gaussian of two more pairs.
    longer = cider_d([["a", "b", "c", "d", "x", "y"], ["e"]], [[["a", "b", "c", "d"]], [["e"]]])
    punished = math.exp(-(2**2) / 72)
    cosines = [math.sqrt(4 / 6), math.sqrt(3 / 5), math.sqrt(2 / 4), math.sqrt(1 / 3)]
    assert longer[0] == pytest.approx(10 / 4 * sum(cosines) * punished)
    np.testing.assert_array_equal(cider_d([["a"]], [[["a"]]]), [0])  # one picture: every idf is 0


def test_facts_count_repeats():
    counts = fact_counts(["circle", "circle", "star"], ["circle", "circle", "circle"])
    assert counts.tolist() == [2, 3, 3]
    assert f1(counts) == pytest.approx(2 * 2 / 6)
    assert np.isnan(f1(np.zeros(3)))


def test_overlap_of_boxes():
    assert iou((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert iou((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_the_pointing_game():
    heat = np.zeros((6, 8))
    assert points_at(heat, (0, 0, 8, 6)) == 0  # flat
    heat[4, 6] = 1
    assert points_at(heat, (6, 4, 7, 5)) == 1
    assert points_at(heat, (0, 0, 6, 6)) == 0
    heat[0, 0] = 1  # two peaks point between them
    assert points_at(heat, (0, 0, 1, 1)) == 0
    assert points_at(heat, (3, 2, 4, 3)) == 1


def test_ranks_of_retrieval():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.5, 0.5, 0.5]])
    assert ranks(scores).tolist() == [0, 1, 2]  # the tie of the last row counts against it
    assert ranks(scores, ["a", "b", "b"]).tolist() == [0, 1, 1]
    assert recall_at(ranks(scores), 2).mean() == pytest.approx(2 / 3)
    assert ranks(np.full((2, 2), np.nan)).tolist() == [1, 1]


def test_the_interval_holds_what_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = bootstrap(rng.normal(1.0, 2.0, 100), seed=trial, n=400)
        covered += found.low <= 1.0 <= found.high
    assert 178 <= covered <= 199  # 95 % of 200, three standard deviations either way
    found = bootstrap(np.arange(100.0), seed=1)
    width = found.high - found.low
    assert (found.value, found.n) == (49.5, 100)
    assert width == pytest.approx(2 * 1.96 * np.arange(100.0).std() / 10, rel=0.1)
    assert bootstrap(np.arange(100.0), seed=1) == found
    assert bootstrap(np.arange(100.0), seed=2) != found


def test_pictures_are_drawn_whole():
    # Ten questions a picture with one answer each: the interval is that of 40 pictures, not of 400 questions.
    pictures = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    alone = bootstrap(pictures, n=4000)
    repeated = bootstrap(
        np.repeat(pictures, 10), n=4000, clusters=np.repeat([f"p{i}" for i in range(40)], 10)
    )
    assert repeated.n == 400
    assert repeated.value == alone.value
    assert repeated.low == pytest.approx(alone.low, abs=0.03)
    assert repeated.high == pytest.approx(alone.high, abs=0.03)
    naive = bootstrap(np.repeat(pictures, 10), n=4000)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_a_ratio_of_sums_is_drawn_as_such():
    counts = np.array([[1, 2, 2], [0, 1, 3], [3, 3, 3]], float)
    found = bootstrap_ratio(counts, f1, 3)
    assert found.value == pytest.approx(2 * 4 / 14)
    assert found.low == pytest.approx(0)  # three times the second picture
    assert found.high == pytest.approx(1)
    with pytest.raises(SmoljaxError, match="no sample"):
        bootstrap([])
