"""Clouds whose measures are known."""

import numpy as np
import pytest

from smoljax.analysis import geometry


def cloud(n=4000, width=6, mean=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, scale, (n, width))


def test_centroid_gap_of_a_shifted_cloud():
    x = cloud()
    shift = np.array([3.0, 4.0, 0, 0, 0, 0])
    found = geometry.centroid_gap(x + shift, x)
    assert found["raw"] == pytest.approx(5.0)
    assert found["relative"] == pytest.approx(5.0 / np.sqrt((x**2).sum(-1).mean()))
    # At length one a cloud far away in one direction is a point there: its centroid has length 1, the ball's 0.
    assert geometry.centroid_gap(x + 1000 * shift, x)["unit"] == pytest.approx(1.0, abs=0.03)


def test_norms_are_quantiles():
    x = np.zeros((5, 3))
    x[:, 0] = [1, 2, 3, 4, 5]
    assert geometry.norms(x, (0.0, 0.5, 1.0)) == [1, 3, 5]


def test_anisotropy_of_a_ball_and_of_a_beam():
    assert geometry.anisotropy(cloud()) == pytest.approx(0.0, abs=0.01)
    assert geometry.anisotropy(np.ones((10, 4))) == pytest.approx(1.0)
    two = np.array([[1.0, 0], [0, 1.0]])
    assert geometry.anisotropy(two) == pytest.approx(0.0)
    assert geometry.anisotropy(np.array([[1.0, 0], [1.0, 0], [-1.0, 0]])) == pytest.approx(-1 / 3)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_effective_rank_counts_equal_directions(rank):
    x = cloud(n=20000)
    x[:, rank:] = 0
    assert geometry.effective_rank(x @ np.linalg.qr(cloud(6, 6, seed=3))[0] + 7) == pytest.approx(
        rank, rel=0.01
    )


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # Two isotropic Gaussians: ‖μ‖² + D (σ₁ − σ₂)².
    x, y = cloud(40000, scale=2.0), cloud(40000, mean=0.5, scale=1.0, seed=1)
    assert geometry.frechet_distance(x, y) == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.03)
    assert geometry.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-8)
    turned = x @ np.linalg.qr(cloud(6, 6, seed=4))[0]
    assert geometry.frechet_distance(turned, x) == pytest.approx(0.0, abs=0.02)


def test_energy_distance_of_points_and_of_one_distribution():
    zeros, ones = np.zeros((50, 1)), np.ones((60, 1))
    assert geometry.energy_distance(zeros, ones) == pytest.approx(np.sqrt(2.0))
    assert abs(geometry.energy_distance(cloud(1000), cloud(1000, seed=1))) < 0.1
    assert geometry.energy_distance(cloud(1000), cloud(1000, mean=1.0, seed=1)) > 1.0


def test_separability_of_what_cannot_and_what_can_be_told_apart():
    assert geometry.separability(cloud(), cloud(seed=1)) == pytest.approx(0.5, abs=0.03)
    assert geometry.separability(cloud(), cloud(mean=5.0, seed=1)) == pytest.approx(1.0, abs=1e-3)
    # One dimension shifted by d standard deviations: the best area is Φ(d/√2).
    shifted = cloud(20000, seed=1)
    shifted[:, 2] += 1.0
    assert geometry.separability(cloud(20000), shifted) == pytest.approx(0.760, abs=0.01)


def test_separability_is_not_taken_in_by_words_that_come_again():
    # Forty words of one distribution on each side, each many times: nothing but the words themselves tells the sides.
    x, y = (cloud(40, 30, seed=seed)[np.arange(2000) % 40] for seed in (0, 1))
    words = np.arange(2000) % 40
    assert geometry.separability(x, y) > 0.85
    assert geometry.separability(x, y, words, words) == pytest.approx(0.5, abs=0.25)


def test_area_under_roc_by_hand():
    assert geometry.area_under_roc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert geometry.area_under_roc(np.array([1.0]), np.array([1.0])) == 0.5
