"""A model's parameters for another way of sharing the embedding space: kept where they fit, fresh where not."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.nn.connectors import make_connector
from smoljax.nn.smolvlm import abstract_params, init_params
from smoljax.sharing import SharingConfig

Tie = Literal["table", "head", "mean", "untied"]


def adapt(
    config: SmolVLMConfig,
    params: Mapping[str, Any],
    *,
    sharing: SharingConfig | None = None,
    tie: Tie | None = None,
    scale_factor: int | None = None,
    seed: int = 0,
) -> tuple[SmolVLMConfig, dict[str, Any]]:
    """Takes a checkpoint to another `SharingConfig`, ties or unties its word table, or shuffles otherwise.

    Args:
      config: its architecture.
      params: its parameters, in the layout of layers that `config.compute` says; NumPy or jax arrays.
      sharing: the new way; None keeps it.
      tie: what the one table of an untied model becomes: its input "table", its "head", or their "mean"; "untied" gives
        a tied model a head of its own, at first equal to the table; None leaves it.
      scale_factor: of the pixel shuffle; another one gives another number of image tokens, and fresh projections.
      seed: of what is fresh.

    Returns:
      The new architecture, and parameters: arrays whose path and shape are the same are the given ones; new rows are
      those of the table; the rest is as a fresh model has it, a visual table that starts from words from these words.

    Raises:
      SmoljaxError: a sharing that the model cannot have.
    """
    new = adapted(config, sharing=sharing, tie=tie, scale_factor=scale_factor)
    embedding = _tables(dict(params["embedding"]), config, new, tie)
    given = {**params, "embedding": embedding}
    wanted = jax.tree_util.tree_flatten_with_path(abstract_params(new))
    have = dict(jax.tree_util.tree_flatten_with_path(given)[0])
    missing = [path for path, leaf in wanted[0] if path not in have or have[path].shape != leaf.shape]
    made = dict(zip(missing, _fresh(new, missing, embedding["table"], seed), strict=True))
    return new, jax.tree.unflatten(
        wanted[1], [made[path] if path in made else have[path] for path, _ in wanted[0]]
    )


def adapted(
    config: SmolVLMConfig,
    *,
    sharing: SharingConfig | None = None,
    tie: Tie | None = None,
    scale_factor: int | None = None,
) -> SmolVLMConfig:
    """The architecture that `adapt` gives."""
    return dataclasses.replace(
        config,
        sharing=config.sharing if sharing is None else sharing,
        tie_embeddings=config.tie_embeddings if tie is None else tie != "untied",
        scale_factor=config.scale_factor if scale_factor is None else scale_factor,
    )


def _tables(part: dict[str, Any], old: SmolVLMConfig, new: SmolVLMConfig, tie: Tie | None) -> dict[str, Any]:
    """The embedding's arrays: whole tables first, then tied, then parted again."""
    table, head = part["table"], part.get("head")
    if (first := old.sharing.own_rows) is not None:
        table = _stacked(table[:first], part["rows"])
        if head is not None:
            head = _stacked(head[:first], part["head_rows"])
    if new.tie_embeddings:
        if head is not None:
            table = {"head": head, "mean": 0.5 * (table + head)}.get(tie or "table", table)
        head = None
    elif head is None:
        head = table.copy()
    out = {"table": table} | ({} if head is None else {"head": head})
    if (first := new.sharing.own_rows) is not None:
        out["rows"] = table[first:].copy()
        if head is not None:
            out["head_rows"] = head[first:].copy()
    return out


def _stacked(*parts: Any) -> Any:
    numpy = all(isinstance(part, np.ndarray) for part in parts)
    return np.concatenate(parts) if numpy else jnp.concatenate(parts)


def _fresh(config: SmolVLMConfig, paths: list[Any], words: Any, seed: int) -> list[np.ndarray]:
    """Fresh arrays at some paths of the tree; what lies elsewhere is not computed."""
    if not paths:
        return []

    def make(key: jax.Array, words: jax.Array) -> list[jax.Array]:
        tree = init_params(config, key)
        if config.vision is not None and config.scale_factor is not None:
            module = make_connector(config.sharing, config.text.hidden_size, config.scale_factor, "float32")
            patches = jnp.zeros((1, config.vision.num_patches, config.vision.hidden_size))
            tree["connector"] = module.init(key, patches, words.astype(jnp.float32))["params"]
        leaves = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
        return [leaves[path] for path in paths]

    return [np.asarray(leaf) for leaf in jax.jit(make)(jax.random.key(seed), jnp.asarray(words))]
