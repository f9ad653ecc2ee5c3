"""The compiled programs of generation, as pure functions of parameters and state."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError
from smoljax.generation.options import Sampling
from smoljax.nn.cache import KVCache, init_cache
from smoljax.nn.smolvlm import SmolVLM, apply, forward
from smoljax.ops import sampling


@flax.struct.dataclass
class Controls:
    """Sampling values as arrays: changing one does not compile again.

    Attributes:
      temperature, top_p, repetition_penalty: [] float32.
      top_k, pad_id: [] int32.
      stop_ids: [X] int32, X ≥ 0.
      key: a random key.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    repetition_penalty: Any
    stop_ids: Any
    pad_id: Any
    key: Any


def make_controls(
    config: SmolVLMConfig, options: Sampling, stop_ids: tuple[int, ...], pad_id: int
) -> Controls:
    """The values of `options` as arrays; top_k 0 is the whole vocabulary."""
    vocabulary = config.text.vocab_size
    return Controls(
        temperature=jnp.float32(options.temperature),
        top_k=jnp.int32(min(options.top_k, vocabulary) or vocabulary),
        top_p=jnp.float32(options.top_p),
        repetition_penalty=jnp.float32(options.repetition_penalty),
        stop_ids=jnp.asarray(stop_ids, jnp.int32),
        pad_id=jnp.int32(pad_id),
        key=jax.random.key(options.seed),
    )


@flax.struct.dataclass
class DecodeState:
    """Everything the loop carries.

    Attributes:
      cache: keys and values of all tokens fed so far.
      token: [B] int32, the newest token, not yet fed.
      tokens: [B, M] int32, what was generated; `pad_id` behind a row's stop token.
      step: [] int32, how many tokens a row has.
      done: [B] bool, rows that have met a stop id.
      seen: [B, V] bool, tokens of prompt and answer, for the repetition penalty; [B, 0] where none is applied.
      finite: [] bool, False once a score of a running row was not a number.
    """

    cache: KVCache | None
    token: Any
    tokens: Any
    step: Any
    done: Any
    seen: Any
    finite: Any

    def reached(self) -> int:
        """How many tokens every running row has."""
        return int(self.step)

    def counted(self) -> tuple[int, int, int]:
        """Passes after the prefill; no guesses checked and none kept."""
        return int(self.step) - 1, 0, 0


def encode_tiles(
    config: SmolVLMConfig,
    params: Any,
    pixel_values: Float[Array, "X C h w"],
    pixel_attention_mask: Bool[Array, "X h w"] | None,
) -> Float[Array, "X Q D"]:
    """Image tokens of X tiles."""
    return apply(config, params, pixel_values, pixel_attention_mask, method=SmolVLM.encode_images)[0]


def prefill(
    config: SmolVLMConfig,
    sampled: bool,
    penalised: bool,
    max_new_tokens: int,
    ahead: int,
    params: Any,
    batch: dict[str, Array],
    controls: Controls,
) -> DecodeState:
    """Reads the prompt [B, T], left-padded, and chooses the first token of every row.

    Logits are computed at the last position only. `sampled`, `penalised`, `max_new_tokens` and `ahead`, more slots of
    the cache for guesses, are static.
    """
    B, T = batch["input_ids"].shape
    room = T + max_new_tokens + ahead
    cache = init_cache(config.text, config.compute, B, room, config.sharing.image_attention)
    out = forward(config, params, batch, cache, "last")
    seen = jnp.zeros((B, config.text.vocab_size if penalised else 0), bool)
    if penalised:
        rows = jnp.arange(B)[:, None]
        seen = seen.at[rows, batch["input_ids"]].max(batch["attention_mask"])
    state = DecodeState(
        cache=out.cache,
        token=jnp.zeros((B,), jnp.int32),
        tokens=jnp.full((B, max_new_tokens), controls.pad_id, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        done=jnp.zeros((B,), bool),
        seen=seen,
        finite=jnp.ones((), bool),
    )
    return _choose(state, out.logits[:, -1], sampled, penalised, controls)


def decode(
    config: SmolVLMConfig,
    sampled: bool,
    penalised: bool,
    params: Any,
    state: DecodeState,
    limit: Int[Array, ""],
    controls: Controls,
) -> DecodeState:
    """Generates until every row has stopped or has `limit` tokens; `limit` is an array, so streaming a token
    at a time and running to the end are the same program."""

    def unfinished(state: DecodeState) -> Array:
        return (state.step < limit) & ~state.done.all()

    def body(state: DecodeState) -> DecodeState:
        return step(config, sampled, penalised, params, state, controls)

    return jax.lax.while_loop(unfinished, body, state)


def step(
    config: SmolVLMConfig, sampled: bool, penalised: bool, params: Any, state: DecodeState, controls: Controls
) -> DecodeState:
    """One pass of `decode`: feeds every row's newest token and chooses the next."""
    # What is made of weights alone would be made once, before the loop, and kept beside them.
    own, token = jax.lax.optimization_barrier((params, state.token))
    out = forward(config, own, {"input_ids": token[:, None]}, state.cache, "last")
    return _choose(
        dataclasses.replace(state, cache=out.cache), out.logits[:, -1], sampled, penalised, controls
    )


def _choose(
    state: DecodeState, logits: Float[Array, "B V"], sampled: bool, penalised: bool, controls: Controls
) -> DecodeState:
    rows = jnp.arange(logits.shape[0])
    finite = jnp.isfinite(jnp.max(logits, axis=-1)) | state.done
    if penalised:
        logits = sampling.penalise_repetition(logits, state.seen, controls.repetition_penalty)
    if sampled:
        key = jax.random.fold_in(controls.key, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
        token = sampling.sample(logits, keys, controls.temperature, controls.top_k, controls.top_p)
    else:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    token = jnp.where(state.done, controls.pad_id, token)
    return dataclasses.replace(
        state,
        token=token,
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
        step=state.step + 1,
        done=state.done | jnp.isin(token, controls.stop_ids),
        seen=state.seen.at[rows, token].set(True) if penalised else state.seen,
        finite=state.finite & finite.all(),
    )


def extend(
    config: SmolVLMConfig, params: Any, batch: dict[str, Array], cache: KVCache
) -> tuple[KVCache, Float[Array, "B V"]]:
    """Feeds a chunk of C tokens behind what the cache holds: a prompt is read by a loop of these.

    Args:
      config: static.
      params: of the model.
      batch: `input_ids` [B, C]; `attention_mask` [B, C], False on padding on either side, at least one token of a row
        being real (absent: all are); where the chunk has image tokens, `image_features` [B, 1, C, D], the chunk's own
        in the order of their places, whatever behind them.
      cache: of S slots, C of which are free behind `index`; else the scores are NaN.

    Returns:
      The cache, whose `index` [B] stands behind each row's last real token, so that padding on the right takes no
      slots; and the scores at that token, float32.

    Raises:
      UsageError: image tokens are not causal (`smoljax.sharing.SharingConfig`).
    """
    if config.sharing.image_attention != "causal":
        raise UsageError(
            f"image_attention is {config.sharing.image_attention!r}: prompts are read in chunks only where image "
            "tokens are causal, as the released models' are"
        )
    B, C = batch["input_ids"].shape
    mask = batch.get("attention_mask", jnp.ones((B, C), bool))
    length = C - jnp.argmax(mask[:, ::-1], axis=1).astype(jnp.int32)
    out = forward(config, params, batch, cache, "none")
    assert out.cache is not None
    last = jnp.take_along_axis(out.hidden, length[:, None, None] - 1, axis=1)[:, 0]
    logits = apply(config, params, last, method=SmolVLM.logits)
    return dataclasses.replace(out.cache, index=cache.index + length), logits
