"""Several tokens a pass: guesses are fed at once and kept as far as the model would have chosen them itself.

What the kinds of guessing share (`lookup`, `draft`): the state, and the pass that checks. Greedy acceptance of
speculative decoding (Leviathan et al. 2023; Chen et al. 2023): the answer is that of plain greedy decoding, whoever
guesses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.generation.programs import Controls, DecodeState
from smoljax.nn.cache import KVCache
from smoljax.nn.smolvlm import forward


@flax.struct.dataclass
class AheadState:
    """What the loop carries.

    Attributes:
      cache: keys and values; a row's slots up to `length` - 1 are fed.
      given: [B, S] bool, slots that hold prompt tokens.
      words: [B, S] int32, prompt and answer, each token at its slot.
      length: [B] int32, slots of `words` that are known; the last of them is not fed yet.
      tokens: [B, M] int32, the answer; `pad_id` behind a stop token.
      counts: [B] int32, how many tokens a row's answer has.
      most: [] int32, how many it may have.
      done: [B] bool, rows that have met a stop id.
      finite: [] bool, False once a score of a running row was not a number.
      passes: [] int32, passes through the model so far.
      drafted: [] int32, guesses that were checked, of all rows.
      accepted: [] int32, guesses that were kept.
    """

    cache: KVCache
    given: Any
    words: Any
    length: Any
    tokens: Any
    counts: Any
    most: Any
    done: Any
    finite: Any
    passes: Any
    drafted: Any
    accepted: Any

    def running(self) -> Bool[Array, " B"]:
        """Rows whose answer goes on."""
        return ~self.done & (self.counts < self.most)

    def fed(self, given: Bool[Array, "B S"], upto: Int[Array, " B"]) -> Bool[Array, "B S"]:
        """The slots below `upto` that hold a token of the prompt, as `given` says, or of the answer."""
        slots, answer = jnp.arange(given.shape[1]), self.length - self.counts
        return (given | (slots >= answer[:, None])) & (slots < upto[:, None])

    def reached(self) -> int:
        """How many tokens every running row has; where none runs, what the longest has."""
        counts, done = np.asarray(self.counts), np.asarray(self.done)
        return int(counts.max() if done.all() else counts[~done].min())

    def counted(self) -> tuple[int, int, int]:
        """Passes, guesses checked, guesses kept."""
        return int(self.passes), int(self.drafted), int(self.accepted)


def start(state: DecodeState, batch: dict[str, Array], most: Int[Array, ""]) -> AheadState:
    """The state behind a prefill of `batch` (left-padded to T), whose cache has room for the guesses too."""
    assert state.cache is not None
    B, T = batch["input_ids"].shape
    behind = ((0, 0), (0, state.cache.num_slots - T))
    none = jnp.zeros((), jnp.int32)
    return AheadState(
        cache=state.cache,
        given=jnp.pad(batch["attention_mask"], behind),
        words=jnp.pad(batch["input_ids"], behind).at[:, T].set(state.token),
        length=jnp.full((B,), T + 1, jnp.int32),
        tokens=state.tokens,
        counts=jnp.ones((B,), jnp.int32),
        most=most,
        done=state.done,
        finite=state.finite,
        passes=none,
        drafted=none,
        accepted=none,
    )


def repeat(step: Callable[[Any], Any], state: Any, target: Int[Array, ""]) -> Any:
    """Takes steps until every row has stopped or has `target` tokens; the last step may bring more of them."""
    return jax.lax.while_loop(lambda state: (~state.done & (state.counts < target)).any(), step, state)


def advance(
    config: SmolVLMConfig,
    params: Any,
    state: Any,
    guesses: Int[Array, "B G"],
    guessed: Bool[Array, " B"],
    controls: Controls,
) -> Any:
    """One pass: the newest token and the guesses in, the guesses that were right and one token more out.

    `state` is an `AheadState` or made from it; `guessed` are the rows whose guesses count as such.
    """
    G, at = guesses.shape[1], state.length - 1
    newest = jnp.take_along_axis(state.words, at[:, None], axis=1)
    # What is made of weights alone would be made once, before the loop, and kept beside them.
    own, fed = jax.lax.optimization_barrier((params, jnp.concatenate([newest, guesses], axis=1)))
    cache = dataclasses.replace(state.cache, index=at, valid=state.fed(state.given, at))
    out = forward(config, own, {"input_ids": fed}, cache, "all")
    assert out.logits is not None
    assert out.cache is not None
    chosen = jnp.argmax(out.logits, axis=-1).astype(jnp.int32)  # [B, G + 1]
    right = jnp.cumprod(chosen[:, :G] == guesses, axis=1).sum(axis=1)
    running = state.running()
    kept = jnp.where(running, jnp.minimum(right + 1, state.most - state.counts), 0)
    ends = jnp.isin(chosen, controls.stop_ids) & (jnp.arange(G + 1) < kept[:, None])
    stopped = ends.any(axis=1)
    kept = jnp.where(stopped, jnp.argmax(ends, axis=1) + 1, kept)
    finite = _finite(out.logits, kept) | ~running
    asked = guessed & running
    return dataclasses.replace(
        state,
        cache=dataclasses.replace(out.cache, index=state.cache.index, valid=state.cache.valid),
        words=_put(state.words, chosen, state.length, kept),
        length=state.length + kept,
        tokens=_put(state.tokens, chosen, state.counts, kept),
        counts=state.counts + kept,
        done=state.done | stopped,
        finite=state.finite & finite.all(),
        passes=state.passes + 1,
        drafted=state.drafted + G * asked.sum(dtype=jnp.int32),
        accepted=state.accepted + jnp.where(asked, jnp.minimum(right, kept), 0).sum(dtype=jnp.int32),
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
