"""The two compiled programs of batched answering: read the pictures once, answer many questions about them.

Pure functions of parameters and arrays. Together they do what `smoljax.generation.programs` does for a whole prompt
(greedy), with the keys and values of the pictures' tokens shared by all questions about them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from smoljax.config import SmolVLMConfig
from smoljax.nn.cache import KVCache, init_cache
from smoljax.nn.smolvlm import forward


@functools.partial(jax.jit, static_argnums=0)
def read_trunk(config: SmolVLMConfig, params: Any, batch: dict[str, Array]) -> KVCache:
    """Keys and values of P prompts' common beginnings, left-padded to S tokens: a full cache of S slots."""
    rows, slots = batch["input_ids"].shape
    cache = init_cache(config.text, config.compute, rows, slots, config.sharing.image_attention)
    full = forward(config, params, batch, cache, "none").cache
    assert full is not None
    return full


@functools.partial(jax.jit, static_argnums=(0, 1))
def answer(
    config: SmolVLMConfig,
    room: int,
    params: Any,
    trunk: KVCache,
    rows: Int[Array, "B"],
    batch: dict[str, Array],
    stop_ids: Int[Array, "X"],
    pad_id: Int[Array, ""],
) -> tuple[Int[Array, "B M"], Bool[Array, ""]]:
    """Continues beginnings with questions and answers them greedily.

    Args:
      config, room: static; at most `room` = M new tokens.
      params: of the model.
      trunk: what `read_trunk` gave for P beginnings.
      rows: which of them each question continues.
      batch: `input_ids` and `attention_mask` [B, R] of the questions, left-padded.
      stop_ids: tokens that end an answer.
      pad_id: stands behind a row's end.

    Returns:
      The new tokens, and whether all scores of running rows were finite.
    """
    B, length = batch["input_ids"].shape
    cache = _continued(config, trunk, rows, length + room)
    out = forward(config, params, batch, cache, "last")
    tokens = jnp.full((B, room), pad_id, jnp.int32)
    start = (jnp.int32(0), tokens, jnp.zeros((B,), bool), jnp.bool_(True), out.logits[:, -1], out.cache)

    def choose(step: Array, tokens: Array, done: Array, finite: Array, scores: Array) -> tuple[Array, ...]:
        good = jnp.isfinite(scores.max(axis=-1)) | done
        token = jnp.where(done, pad_id, jnp.argmax(scores, axis=-1).astype(jnp.int32))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return token, tokens, done | jnp.isin(token, stop_ids), finite & good.all()

    def unfinished(state: tuple[Any, ...]) -> Array:
        step, _, done, *_ = state
        return (step < room - 1) & ~done.all()

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tokens, done, finite, scores, cache = state
        token, tokens, done, finite = choose(step, tokens, done, finite, scores)
        out = forward(config, params, {"input_ids": token[:, None]}, cache, "last")
        return step + 1, tokens, done, finite, out.logits[:, -1], out.cache

    step, tokens, done, finite, scores, _ = jax.lax.while_loop(unfinished, advance, start)
    _, tokens, _, finite = choose(step, tokens, done, finite, scores)
    return tokens, finite


def _continued(config: SmolVLMConfig, trunk: KVCache, rows: Array, more: int) -> KVCache:
    """The trunk's cache for each of `rows`, with `more` empty slots behind."""
    layers = 1 if config.compute.scan_layers else 0  # leading axes before the rows

    def take(leaf: Array, axis: int) -> Array:
        widths = [(0, more if place == axis + 1 else 0) for place in range(leaf.ndim)]
        return jnp.pad(jnp.take(leaf, rows, axis=axis), widths)

    k, v, cross = jax.tree.map(lambda leaf: take(leaf, layers), (trunk.k, trunk.v, trunk.cross))
    valid, blocks = jax.tree.map(lambda leaf: take(leaf, 0), (trunk.valid, trunk.blocks))
    return KVCache(k=k, v=v, valid=valid, index=trunk.index, cross=cross, blocks=blocks)
