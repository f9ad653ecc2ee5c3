"""CKA and mutual neighbours: 1 for the same, their null for the unrelated."""

import numpy as np
import pytest

from smoljax.analysis.similarity import calibrated, debiased_cka, mutual_knn


def features(n=200, width=30, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def test_a_rotation_is_the_same_representation():
    x = features()
    turn = np.linalg.qr(features(30, 30, seed=5))[0]
    assert debiased_cka(x, 3 * x @ turn + 2) == pytest.approx(1.0)
    assert mutual_knn(x, 3 * x @ turn) == pytest.approx(1.0)


@pytest.mark.parametrize("width", [30, 1000])
def test_unrelated_features_are_at_their_null(width):
    x, y = features(width=width), features(width=width, seed=1)
    # Without debiasing, 200 samples of 1000 features have a CKA of 0.83.
    assert abs(debiased_cka(x, y)) < 0.05
    chance = 10 / 199
    assert mutual_knn(x, y, 10) == pytest.approx(chance, abs=0.02)
    for score, mean in ((debiased_cka, 0.0), (mutual_knn, chance)):
        found = calibrated(score, x, y, shuffles=50)
        assert found.null_mean == pytest.approx(mean, abs=0.01)
        assert abs(found.value - found.null_mean) < 0.05


@pytest.mark.parametrize("score", [debiased_cka, mutual_knn])
def test_the_null_is_calibrated(score):
    # Of unrelated pairs, p is even between 0 and 1.
    pairs = [(features(60, 20, seed=2 * i), features(60, 20, seed=2 * i + 1)) for i in range(60)]
    p = np.array([calibrated(score, x, y, shuffles=30, seed=i).p for i, (x, y) in enumerate(pairs)])
    assert p.mean() == pytest.approx(0.5, abs=0.12)
    assert (p < 0.1).mean() < 0.25


def test_related_features_are_above_their_null():
    x = features()
    y = np.concatenate([x[:, :10], features(200, 20, seed=2)], axis=1)
    for score in (debiased_cka, mutual_knn):
        found = calibrated(score, x, y, shuffles=50)
        assert found.value > found.null_high
        assert found.p == pytest.approx(1 / 51)
    # Ten of thirty equal dimensions are shared on both sides.
    assert debiased_cka(
        features(4000), np.concatenate([features(4000)[:, :10], features(4000, 20, seed=2)], 1)
    ) == (pytest.approx(1 / 3, abs=0.03))


def test_too_few_things_are_refused():
    with pytest.raises(ValueError, match="needs 4"):
        debiased_cka(features(3), features(3))
    with pytest.raises(ValueError, match="k is 5"):
        mutual_knn(features(5), features(5), 5)
