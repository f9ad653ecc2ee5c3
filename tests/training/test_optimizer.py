"""Schedules, groups and freezing."""

from itertools import pairwise

import jax
import numpy as np
import optax
import pytest

from smoljax import presets
from smoljax.errors import UsageError
from smoljax.nn.smolvlm import init_params
from smoljax.training.config import Group, OptimizerConfig
from smoljax.training.optimizer import global_norm, hold_frozen, labels, make_optimizer, path_of, schedule


@pytest.fixture(scope="module")
def params():
    config = presets.tiny().with_compute(scan_layers=True)
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(0))


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "constant"])
def test_schedules_begin_and_end_where_they_should(decay):
    rate = schedule(OptimizerConfig(warmup_steps=10, decay=decay, final_lr=0.1, decay_fraction=0.25), 100)
    values = [float(rate(step)) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[10] == pytest.approx(1.0)
    assert all(b >= a for a, b in pairwise(values[:11]))
    assert values[-1] == pytest.approx(1.0 if decay == "constant" else 0.1, abs=0.05)
    if decay == "wsd":
        assert values[74] == pytest.approx(1.0)
        assert values[88] == pytest.approx(0.55, abs=0.05)


def test_the_first_group_that_matches_counts(params):
    config = OptimizerConfig(
        "muon",
        weight_decay=0.1,
        groups=(Group("^vision/", frozen=True), Group("^decoder/", lr=0.5), Group("decoder", lr=9.0)),
    )
    with pytest.raises(UsageError, match="no parameter matches 'decoder'"):
        labels(config, params)
    config = OptimizerConfig("muon", weight_decay=0.1, groups=config.groups[:2])
    found = {
        path_of(path): label
        for path, label in jax.tree_util.tree_flatten_with_path(labels(config, params))[0]
    }
    assert found["vision/layers/mlp/fc1/kernel"] == "frozen"
    assert found["decoder/layers/mlp/up/kernel"] == "muon 0.5 0.1"
    assert found["decoder/final_norm/scale"] == "adamw 0.5 0.0"
    assert found["embedding/table"] == "adamw 1.0 0.1"
    assert found["connector/proj/kernel"] == "muon 1.0 0.1"


def test_frozen_parameters_stay_and_have_no_state(params):
    config = OptimizerConfig(warmup_steps=0, groups=(Group("^vision/", frozen=True),))
    optimizer = make_optimizer(config, 10, params)
    state = optimizer.init(params)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    trained = sum(
        leaf.size for key, part in params.items() if key != "vision" for leaf in jax.tree.leaves(part)
    )
    assert moments == 2 * trained
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(lambda leaf: leaf + 1.0, params), state, params)
    new = optax.apply_updates(params, updates)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, new)
    assert all(jax.tree.leaves(same["vision"]))
    assert not any(jax.tree.leaves(same["decoder"]))


def test_frozen_parameters_get_no_gradient_and_no_say_in_the_norm(params):
    params = {name: params[name] for name in ("connector", "embedding")}
    config = OptimizerConfig(groups=(Group("^connector/", frozen=True),))

    def half_square(tree):
        return global_norm(hold_frozen(config, tree)) ** 2 / 2

    grads = jax.grad(half_square)(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["connector"]))
    np.testing.assert_allclose(grads["embedding"]["table"], params["embedding"]["table"], rtol=1e-4)
    np.testing.assert_allclose(global_norm(grads), global_norm(params["embedding"]), rtol=1e-4)
    assert hold_frozen(OptimizerConfig(), params) is params


def test_a_learning_rate_factor_scales_adamw_updates(params):
    params = {name: params[name] for name in ("connector", "embedding")}
    grads = jax.tree.map(lambda leaf: 1e-4 * (leaf + 0.3), params)
    moved = []
    for factor in (1.0, 0.25):
        config = OptimizerConfig(warmup_steps=0, groups=(Group("^connector/", lr=factor),))
        optimizer = make_optimizer(config, 10, params)
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        moved.append(np.abs(updates["connector"]["proj"]["kernel"]).mean())
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=1e-4)


def test_all_frozen_is_an_error(params):
    with pytest.raises(UsageError, match="every parameter is frozen"):
        labels(OptimizerConfig(groups=(Group("", frozen=True), Group(".", frozen=True))[1:]), params)
