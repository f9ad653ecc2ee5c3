"""Answers without generating them: greedy decoding gives the true answer exactly if every token of it is the best one.

One forward pass over a training batch, many conversations a picture, so a thousand questions take seconds.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smoljax.analysis.changes import CHANGES
from smoljax.config import SmolVLMConfig
from smoljax.nn.smolvlm import SmolVLM, apply
from smoljax.training.objectives.next_token import shift


def forced_answers(
    config: SmolVLMConfig,
    params: Any,
    batch: Mapping[str, Any],
    *,
    change: str = "none",
    key: Array | None = None,
    move: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a model says where it is told the truth so far.

    Args:
      config, params: of the model.
      batch: of `smoljax.data`, with `loss_mask`.
      change: a key of `smoljax.analysis.changes.CHANGES`, made on the image tokens.
      key: of changes that draw.
      move: [D], the shift of the change "move".

    Returns:
      All [B, T], at the place that predicts the next token: which are learned (bool), which of these are the best guess
      (bool), and −log p (float32).
    """
    inputs = {
        name: value for name, value in batch.items() if name not in ("patches", "pair_image", "pair_text")
    }
    key = jax.random.key(0) if key is None else key
    move = jnp.zeros(config.text.hidden_size) if move is None else jnp.asarray(move)
    learned, right, loss = _program(config, change, params, inputs, key, move)
    return np.asarray(learned), np.asarray(right), np.asarray(loss)


def conversations(
    learned: np.ndarray, right: np.ndarray, loss: np.ndarray, segments: np.ndarray, branches: np.ndarray
) -> list[list[tuple[bool, float, int]]]:
    """By row, by conversation in its order: whether all of it is right, its summed −log p, and its learned tokens."""
    rows = []
    for row in range(len(learned)):
        places = np.flatnonzero(learned[row])
        talks: dict[tuple[int, int], list[int]] = {}
        for place in places.tolist():
            # The token that is predicted belongs to the conversation, not the one that predicts it.
            talks.setdefault((int(segments[row, place + 1]), int(branches[row, place + 1])), []).append(place)
        rows.append(
            [
                (bool(right[row, own].all()), float(loss[row, own].sum()), len(own))
                for _, own in sorted(talks.items())
            ]
        )
    return rows


@partial(jax.jit, static_argnums=(0, 1))
def _program(
    config: SmolVLMConfig, change: str, params: Any, batch: dict[str, Array], key: Array, move: Array
) -> tuple[Array, Array, Array]:
    def run(model: SmolVLM) -> Array:
        features = None
        if config.vision is not None and batch["pixel_values"].shape[1]:
            features = CHANGES[change](model.encode_images(batch["pixel_values"])[0], key, move)
        given = {**batch, "attention_mask": batch["segment_ids"] > 0}
        return model.logits(model.decode(given, features)[1])

    logits = apply(config, params, method=run)
    targets, learned = shift(batch["input_ids"], batch["loss_mask"], batch["positions"])
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    return learned, learned & (logits.argmax(axis=-1) == targets), loss
