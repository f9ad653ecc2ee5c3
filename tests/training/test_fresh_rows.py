"""Rows of the word table that were never learned: found, and drawn anew."""

import numpy as np
import pytest

from smoljax.errors import UsageError
from smoljax.training.config import ModelConfig
from smoljax.training.fresh_rows import unlearned_rows, with_fresh_rows
from smoljax.training.setup import open_model


def table(learned=40, unlearned=25, width=16):
    rng = np.random.default_rng(0)
    rows = rng.normal(0.5, 2.0, (learned, width))
    pushed = 5 * np.ones(width) + rng.normal(0, 0.05, (unlearned, width))
    return np.concatenate([rows[:10], pushed, rows[10:]]).astype(np.float32)


def test_rows_that_share_a_direction_are_found():
    assert unlearned_rows(table(), 0.95).tolist() == list(range(10, 35))
    rows = np.random.default_rng(1).normal(size=(2500, 64)).astype(np.float32)  # more than one block
    rows[2100] = 3 * rows[5]
    assert unlearned_rows(rows, 0.95).tolist() == [5, 2100]


def test_fresh_rows_are_like_the_learned_ones_and_no_longer_alike():
    before = table(learned=400, unlearned=300, width=64)
    after, fresh = with_fresh_rows(before, 0.95, seed=7)
    assert fresh.tolist() == list(range(10, 310))
    kept = np.delete(np.arange(700), fresh)
    np.testing.assert_array_equal(after[kept], before[kept])
    np.testing.assert_allclose(after[fresh].mean(), 0.5, atol=0.1)
    np.testing.assert_allclose(after[fresh].std(), 2.0, atol=0.1)
    assert not len(unlearned_rows(after, 0.95))
    np.testing.assert_array_equal(after, with_fresh_rows(before, 0.95, seed=7)[0])
    assert (after != with_fresh_rows(before, 0.95, seed=8)[0]).any()


def test_a_table_that_is_all_learned_or_all_unlearned_stays():
    alike = table(learned=0)
    for rows in (table(unlearned=0), alike):
        after, fresh = with_fresh_rows(rows, 0.95, seed=0)
        assert not len(fresh)
        np.testing.assert_array_equal(after, rows)


def test_a_run_may_start_with_fresh_rows():
    before = open_model(ModelConfig(start="smolvlm-nano")).params["embedding"]["table"]
    after = open_model(ModelConfig(start="smolvlm-nano", fresh_rows=0.9), seed=3).params["embedding"]["table"]
    changed = (before != after).any(axis=-1)
    assert changed.sum() == len(unlearned_rows(before, 0.9)) == 566
    with pytest.raises(UsageError, match="between 0 and 1"):
        ModelConfig(start="smolvlm-nano", fresh_rows=1.5)
