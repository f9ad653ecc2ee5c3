"""From an `OptimizerConfig` to an optax transformation, with learning rates and freezing by parameter path."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoljax.errors import UsageError
from smoljax.training.config import Group, OptimizerConfig, OptimizerName

FROZEN = "frozen"


def schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """The learning rate as a fraction of its peak, a function of the step."""
    warm = min(config.warmup_steps, steps)
    rest = max(steps - warm, 1)
    if config.decay == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, alpha=config.final_lr)
    elif config.decay == "linear":
        after = optax.linear_schedule(1.0, config.final_lr, rest)
    elif config.decay == "wsd":
        falling = max(int(steps * config.decay_fraction), 1)
        after = optax.linear_schedule(1.0, config.final_lr, falling, max(rest - falling, 0))
    else:
        after = optax.constant_schedule(1.0)
    return optax.join_schedules(
        [optax.linear_schedule(1 / max(warm, 1), 1.0, max(warm - 1, 1)), after], [warm]
    )


def path_of(path: tuple[Any, ...]) -> str:
    """A parameter's path as text: "decoder/layers_0/mlp/up/kernel"."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def is_muon_matrix(path: str, leaf: Any) -> bool:
    """Whether Muon takes it: the matrices inside layers and of the connector; stacked ones by layer."""
    stacked = "/layers/" in path
    inside = stacked or "/layers_" in path or path.startswith("connector/")
    return inside and path.endswith("kernel") and leaf.ndim == 2 + stacked


def labels(config: OptimizerConfig, params: Any) -> Any:
    """A tree like `params` of (optimizer, lr factor, weight decay) as text, or "frozen".

    Raises:
      UsageError: a group that matches no parameter.
    """
    matched = {group.pattern: 0 for group in config.groups}

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        name = path_of(path)
        group = next((g for g in config.groups if re.search(g.pattern, name)), Group(""))
        if group.pattern:
            matched[group.pattern] += 1
        if group.frozen:
            return FROZEN
        kind: OptimizerName = group.optimizer or config.name
        if kind == "muon" and not is_muon_matrix(name, leaf):
            kind = "adamw"
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        if leaf.ndim < 2 or not name.endswith(("kernel", "table", "head", "rows")):
            decay = 0.0
        return f"{kind} {group.lr!r} {decay!r}"

    tree = jax.tree_util.tree_map_with_path(label, params)
    if unused := [pattern for pattern, number in matched.items() if not number]:
        raise UsageError(f"optimizer.groups: no parameter matches {', '.join(map(repr, unused))}")
    if all(leaf == FROZEN for leaf in jax.tree.leaves(tree)):
        raise UsageError("optimizer.groups: every parameter is frozen; nothing is left to train")
    return tree


def make_optimizer(config: OptimizerConfig, steps: int, params: Any) -> optax.GradientTransformation:
    """Clipping, then each group's own optimizer; frozen parameters have no state.

    Args:
      config: see there.
      steps: of the whole run, for the schedule.
      params: the parameters or their shapes.
    """
    tree = labels(config, params)
    shape = schedule(config, steps)
    kinds = {}
    for label in sorted(set(jax.tree.leaves(tree))):
        if label == FROZEN:
            kinds[label] = optax.set_to_zero()
            continue
        kind, factor, decay = label.split()
        peak = (config.muon_lr if kind == "muon" else config.lr) * float(factor)
        rate = _scaled(shape, peak)
        if kind == "adamw":
            kinds[label] = optax.adamw(
                rate, config.beta1, config.beta2, config.eps, weight_decay=float(decay)
            )
        else:
            kinds[label] = optax.contrib.muon(
                rate,
                weight_decay=float(decay),
                consistent_rms=0.2,
                muon_weight_dimension_numbers=_dimensions,
            )
    rest = optax.multi_transform(kinds, tree)
    return optax.chain(clip_by_norm(config.clip), rest) if config.clip else rest


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients of a larger global norm down to `limit`.

    One factor for all, where optax divides each number: XLA keeps quotients in a copy of the whole gradient, a
    product it makes again wherever it is read.
    """

    def scaled(updates: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, limit / jnp.maximum(global_norm(updates), 1e-16))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates)

    return optax.stateless(scaled)


def hold_frozen(config: OptimizerConfig, params: Any) -> Any:
    """The parameters, with no gradient to those of frozen groups: it is neither computed nor in the norm."""
    if not any(group.frozen for group in config.groups):
        return params
    return jax.tree.map(
        lambda leaf, label: jax.lax.stop_gradient(leaf) if label == FROZEN else leaf,
        params,
        labels(config, params),
    )


def ema_update(old: Any, new: Any, decay: float) -> Any:
    """old·decay + new·(1 − decay), leaf by leaf."""
    return jax.tree.map(lambda a, b: a * decay + b * (1 - decay), old, new)


def global_norm(tree: Any) -> jax.Array:
    """√Σx², float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def _scaled(shape: Callable[[Any], Any], peak: float) -> Callable[[Any], Any]:
    return lambda step: peak * shape(step)


def _dimensions(params: Any) -> Any:
    """[in, out] for every matrix; a leading layer axis is a batch of matrices."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)
