"""Greedy decoding that guesses ahead from what was said before, several tokens a step, and gives the same tokens.

The last words of a row are looked up in its prompt and answer (prompt lookup, Saxena 2023: speculative decoding,
Leviathan et al. 2023, without a draft model); what followed them there is fed at once, and kept as far as the model
would have chosen it. Where nothing is found a step is the usual one.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.generation.programs import Controls, DecodeState
from smoljax.nn.cache import KVCache
from smoljax.nn.smolvlm import forward


@flax.struct.dataclass
class LookupState:
    """What the loop carries.

    Attributes:
      cache: keys and values; a row's slots up to `length` - 1 are fed.
      given: [B, S] bool, slots that hold prompt tokens.
      words: [B, S] int32, prompt and answer, each token at its slot.
      length: [B] int32, slots of `words` that are known; the last of them is not fed yet.
      tokens: [B, M] int32, the answer; `pad_id` behind a stop token.
      counts: [B] int32, how many tokens a row's answer has.
      done: [B] bool, rows that have met a stop id.
      finite: [] bool, False once a score of a running row was not a number.
      passes: [] int32, passes through the model so far.
    """

    cache: KVCache
    given: Any
    words: Any
    length: Any
    tokens: Any
    counts: Any
    done: Any
    finite: Any
    passes: Any


def start(state: DecodeState, batch: dict[str, Array]) -> LookupState:
    """The state behind a prefill of `batch` (left-padded to T), whose cache has room for the guesses too."""
    assert state.cache is not None
    B, T = batch["input_ids"].shape
    behind = ((0, 0), (0, state.cache.num_slots - T))
    words = jnp.pad(batch["input_ids"], behind).at[:, T].set(state.token)
    return LookupState(
        cache=state.cache,
        given=jnp.pad(batch["attention_mask"], behind),
        words=words,
        length=jnp.full((B,), T + 1, jnp.int32),
        tokens=state.tokens,
        counts=jnp.ones((B,), jnp.int32),
        done=state.done,
        finite=state.finite,
        passes=jnp.zeros((), jnp.int32),
    )


def decode(
    config: SmolVLMConfig,
    guesses: int,
    ngram: int,
    params: Any,
    state: LookupState,
    limit: Int[Array, ""],
    controls: Controls,
) -> LookupState:
    """Generates until every row has stopped or has `limit` tokens.

    Args:
      config: static.
      guesses: static; tokens fed ahead in one pass.
      ngram: static; how many last tokens are looked up.
      params: of the model.
      state: of `start` or of the call before.
      limit: how many tokens a row shall have.
      controls: stop ids and padding; scores are taken as they are.
    """

    def unfinished(state: LookupState) -> Array:
        return (~state.done & (state.counts < limit)).any()

    def step(state: LookupState) -> LookupState:
        draft, found = _look_up(state, guesses, ngram)
        running = ~state.done & (state.counts < limit)
        return jax.lax.cond(
            (found & running).any(),
            lambda: _advance(config, params, state, draft, limit, controls),
            lambda: _advance(config, params, state, draft[:, :0], limit, controls),
        )

    return jax.lax.while_loop(unfinished, step, state)


def _look_up(state: LookupState, guesses: int, ngram: int) -> tuple[Int[Array, "B G"], Bool[Array, " B"]]:
    """What followed the last place where a row said its newest `ngram` tokens, and whether there is such a place."""
    B, S = state.words.shape
    back = jnp.arange(ngram) - ngram
    newest = jnp.take_along_axis(state.words, state.length[:, None] + back, axis=1)
    places = jnp.arange(S - ngram)
    same = jnp.ones((B, S - ngram), bool)
    for i in range(ngram):
        same &= jax.lax.slice_in_dim(state.words, i, S - ngram + i, axis=1) == newest[:, i : i + 1]
    first = jnp.argmax(state.given, axis=1)
    same &= (places >= first[:, None]) & (places + ngram < state.length[:, None])
    best = jnp.max(jnp.where(same, places, -1), axis=1)
    behind = jnp.maximum(best, 0)[:, None] + ngram + jnp.arange(guesses)
    draft = jnp.take_along_axis(state.words, jnp.minimum(behind, state.length[:, None] - 1), axis=1)
    return draft, best >= 0


def _advance(
    config: SmolVLMConfig,
    params: Any,
    state: LookupState,
    draft: Int[Array, "B G"],
    limit: Int[Array, ""],
    controls: Controls,
) -> LookupState:
    """One pass: the newest token and the guesses in, the guesses that were right and one token more out."""
    _B, S = state.words.shape
    G = draft.shape[1]
    slots, at = jnp.arange(S), state.length - 1
    fed = jnp.concatenate([jnp.take_along_axis(state.words, at[:, None], axis=1), draft], axis=1)
    answered = (slots >= at[:, None] - (state.counts[:, None] - 1)) & (slots < at[:, None])
    cache = dataclasses.replace(state.cache, index=at, valid=state.given | answered)
    out = forward(config, params, {"input_ids": fed}, cache, "all")
    assert out.logits is not None
    assert out.cache is not None
    chosen = jnp.argmax(out.logits, axis=-1).astype(jnp.int32)  # [B, G + 1]
    right = jnp.cumprod(chosen[:, :G] == draft, axis=1).sum(axis=1)
    running = ~state.done & (state.counts < limit)
    kept = jnp.where(running, jnp.minimum(right + 1, limit - state.counts), 0)
    ends = jnp.isin(chosen, controls.stop_ids) & (jnp.arange(G + 1) < kept[:, None])
    stopped = ends.any(axis=1)
    kept = jnp.where(stopped, jnp.argmax(ends, axis=1) + 1, kept)
    finite = _finite(out.logits, kept) | ~running
    return LookupState(
        cache=dataclasses.replace(out.cache, index=state.cache.index, valid=state.cache.valid),
        given=state.given,
        words=_put(state.words, chosen, state.length, kept),
        length=state.length + kept,
        tokens=_put(state.tokens, chosen, state.counts, kept),
        counts=state.counts + kept,
        done=state.done | stopped,
        finite=state.finite & finite.all(),
        passes=state.passes + 1,
    )


def _finite(logits: Float[Array, "B T V"], kept: Int[Array, " B"]) -> Bool[Array, " B"]:
    """Whether the scores of the kept tokens are numbers."""
    sound = jnp.isfinite(jnp.max(logits, axis=-1))
    return (sound | (jnp.arange(sound.shape[1]) >= kept[:, None])).all(axis=1)


def _put(
    row: Int[Array, "B S"], new: Int[Array, "B T"], start: Int[Array, " B"], count: Int[Array, " B"]
) -> Int[Array, "B S"]:
    """`row` with the first `count` of `new` from `start` on."""
    offset = jnp.arange(row.shape[1]) - start[:, None]
    inside = (offset >= 0) & (offset < count[:, None])
    return jnp.where(inside, jnp.take_along_axis(new, jnp.clip(offset, 0, new.shape[1] - 1), axis=1), row)
