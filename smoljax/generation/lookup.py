"""Greedy decoding that guesses ahead from what was said before, several tokens a step, and gives the same tokens.

The last words of a row are looked up in its prompt and answer (prompt lookup, Saxena 2023: speculative decoding,
Leviathan et al. 2023, without a draft model); what followed them there is fed at once, and kept as far as the model
would have chosen it. Where nothing is found a step is the usual one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from smoljax.config import SmolVLMConfig
from smoljax.generation import ahead
from smoljax.generation.ahead import AheadState, advance
from smoljax.generation.decoding import Decoding
from smoljax.generation.options import Lookup
from smoljax.generation.programs import Controls


def looking_up(config: SmolVLMConfig, lookup: Lookup) -> Decoding:
    """Decoding that guesses what `lookup` finds."""
    static = (lookup.guesses, lookup.ngram)
    return Decoding(
        "lookup",
        static,
        partial(decode, config, *static),
        lambda _, *args: ahead.start(*args),
        lookup.guesses,
    )


def decode(
    config: SmolVLMConfig,
    guesses: int,
    ngram: int,
    params: Any,
    state: AheadState,
    target: Int[Array, ""],
    controls: Controls,
) -> AheadState:
    """Generates until every row has stopped or has `target` tokens.

    Args:
      config: static.
      guesses: static; tokens fed ahead in one pass.
      ngram: static; how many last tokens are looked up.
      params: of the model.
      state: of `smoljax.generation.ahead.start` or of the call before.
      target: how many tokens a row shall have; it may get more, up to the state's `most`.
      controls: stop ids and padding; scores are taken as they are.
    """

    def step(state: AheadState) -> AheadState:
        draft, found = _look_up(state, guesses, ngram)
        return jax.lax.cond(
            (found & state.running()).any(),
            lambda: advance(config, params, state, draft, found, controls),
            lambda: advance(config, params, state, draft[:, :0], found, controls),
        )

    return ahead.repeat(step, state, target)


def _look_up(state: AheadState, guesses: int, ngram: int) -> tuple[Int[Array, "B G"], Bool[Array, " B"]]:
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
