"""Speculative decoding with a draft model (Leviathan et al. 2023; Chen et al. 2023): the greedy answer in fewer passes.

A small model says some tokens, one after the other; the model reads them in one pass and keeps as many as it would have
said itself (`smoljax.generation.ahead`). The draft is another model of the same vocabulary, with a cache of its own, or
the model's own first layers (early exit, as in LayerSkip, Elhoushi et al. 2024), which write into the model's cache.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError
from smoljax.generation import ahead, tiles
from smoljax.generation.ahead import AheadState, advance
from smoljax.generation.decoding import Decoding
from smoljax.generation.options import Draft, Timings
from smoljax.generation.programs import Controls, DecodeState
from smoljax.nn.cache import KVCache, init_cache
from smoljax.nn.smolvlm import forward
from smoljax.nn.stacking import truncate_layers


@flax.struct.dataclass
class DraftState(AheadState):
    """What the loop carries where the draft is another model.

    Attributes:
      draft_cache: the draft's keys and values; where every guess was kept, it lacks the last of them.
      draft_given: [B, S] bool, slots of the prompt that the draft reads: without places of pictures it is not shown.
    """

    draft_cache: KVCache
    draft_given: Any


def drafting(config: SmolVLMConfig, draft: Draft) -> Decoding:
    """Decoding of `config` with the guesses of `draft`.

    Raises:
      UsageError: the draft does not fit the model; the message says what of it.
    """
    if draft.layers is not None:
        if draft.layers >= config.text.num_layers:
            raise UsageError(
                f"a draft of {draft.layers} layers is no smaller than the model, which has "
                f"{config.text.num_layers}: give fewer"
            )
        static = (draft.layers, draft.guesses)
        return Decoding(
            "draft_layers",
            static,
            partial(decode_with_layers, config, *static),
            lambda _, *args: ahead.start(*args),
            draft.guesses,
        )
    model = getattr(draft.model, "generator", draft.model)
    if not hasattr(model, "config"):
        raise UsageError(f"the draft is {model!r}, no loaded model; smoljax.load gives one")
    own, theirs = config.text.vocab_size, model.config.text.vocab_size
    if own != theirs:
        raise UsageError(
            f"the draft has a vocabulary of {theirs} tokens and the model one of {own}: a draft says the model's own"
        )
    leaves, tree = jax.tree.flatten(model.weight_shapes)
    kept = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    static = (config, model.config, draft.guesses)
    return Drafting(
        "draft",
        (*static[1:], tree, kept),
        partial(decode_with_model, *static),
        partial(start, config, model.config),
        draft.guesses,
        config=config,
        model=model,
    )


@dataclass(frozen=True, kw_only=True)
class Drafting(Decoding):
    """Decoding with another model's guesses.

    Attributes:
      config: of the model that answers.
      model: the other one, a `Generator`.
    """

    config: SmolVLMConfig
    model: Any

    def weights(self, own: Any) -> Any:
        """The model's and the draft's."""
        return own, self.model.weights

    def weight_shapes(self, own: Any) -> Any:
        """The same in shapes and dtypes."""
        return own, self.model.weight_shapes

    def prompt(
        self, batch: Mapping[str, np.ndarray], padded: Mapping[str, Any], timings: Timings
    ) -> dict[str, Any]:
        """Words, and pictures where the draft sees: the model's own features where it is the same architecture."""
        found = super().prompt(batch, padded, timings)
        if "image_features" not in padded or self.model.config.vision is None:
            return found
        features, seats = padded["image_features"], padded["tile_mask"]
        if not self._alike:
            features = self.model.encode_images(batch, seats.shape[1], timings)
        return {**found, "image_features": features, "tile_mask": seats}

    def prompt_shapes(
        self, batch: Mapping[str, np.ndarray], shapes: Mapping[str, Any], timings: Timings
    ) -> dict[str, Any]:
        """The same in shapes and dtypes; UsageError where the model's tiles are not the draft's."""
        found, theirs = super().prompt_shapes(batch, shapes, timings), self.model.config
        if "image_features" not in shapes or theirs.vision is None:
            return found
        features, seats = shapes["image_features"], shapes["tile_mask"]
        if not self._alike:
            have, need = (_tile(config) for config in (theirs, self.config))
            if have != need:
                raise UsageError(
                    f"the draft cannot be shown the model's tiles: its have {have}, the model's {need}; take a draft "
                    "that reads text only, or the same tiles"
                )
            self.model.vision_program(batch, timings)
            shape = tiles.feature_shape(theirs, *seats.shape)
            features = jax.ShapeDtypeStruct(shape, theirs.compute.dtype)
        return {**found, "image_features": features, "tile_mask": seats}

    @property
    def _alike(self) -> bool:
        """Whether the draft is the same architecture, such as the same model in fewer bits."""
        return dataclasses.replace(self.model.config, compute=self.config.compute) == self.config


def _tile(config: SmolVLMConfig) -> str:
    assert config.vision is not None
    return f"{config.vision.image_size} px, {config.image_seq_len} tokens of id {config.image_token_id}"


def start(
    config: SmolVLMConfig,
    draft: SmolVLMConfig,
    weights: tuple[Any, Any],
    state: DecodeState,
    prompt: dict[str, Array],
    most: Int[Array, ""],
) -> DraftState:
    """The draft reads the prompt [B, T] that `state` is the prefill of.

    Args:
      config, draft: static; the model and its draft.
      weights: of both.
      state: behind the model's prefill.
      prompt: `input_ids`, `attention_mask`, and `image_features` and `tile_mask` where the draft is shown pictures;
        elsewhere their places are padding to it.
      most: how many tokens a row's answer may have.
    """
    own = ahead.start(state, prompt, most)
    B, S = own.words.shape
    read = prompt["attention_mask"]
    if "image_features" not in prompt and config.image_token_id is not None:
        read = read & (prompt["input_ids"] != config.image_token_id)
    cache = init_cache(draft.text, draft.compute, B, S, draft.sharing.image_attention)
    cache = forward(draft, weights[1], {**prompt, "attention_mask": read}, cache, "none").cache
    assert cache is not None
    given = jnp.pad(read, ((0, 0), (0, S - read.shape[1])))
    return DraftState(**vars(own), draft_cache=cache, draft_given=given)


def decode_with_model(
    config: SmolVLMConfig,
    draft: SmolVLMConfig,
    guesses: int,
    weights: tuple[Any, Any],
    state: DraftState,
    target: Int[Array, ""],
    controls: Controls,
) -> DraftState:
    """Generates until every row has stopped or has `target` tokens; see `smoljax.generation.lookup.decode`.

    `config`, `draft` and `guesses`, how many the draft says a pass, are static; `weights` are of both models.
    """

    def step(state: DraftState) -> DraftState:
        # The draft has not read its own last guess; so where all were kept it lacks the token before the newest. It
        # is fed once more where it is there already: the same keys and values in the same slot.
        said, cache = _say(draft, guesses, weights[1], state, state.draft_cache, state.draft_given, 1)
        state = dataclasses.replace(state, draft_cache=cache)
        return advance(config, weights[0], state, said, jnp.ones_like(state.done), controls)

    return ahead.repeat(step, state, target)


def decode_with_layers(
    config: SmolVLMConfig,
    layers: int,
    guesses: int,
    params: Any,
    state: AheadState,
    target: Int[Array, ""],
    controls: Controls,
) -> AheadState:
    """Generates as `decode_with_model` does, the model's own first `layers` being the draft.

    They share embedding, final norm and head with the model, and its cache: what it has read they have read, and what
    they write of guesses the checking pass writes again. Nothing is copied but of scanned layers.
    """
    text = dataclasses.replace(config.text, num_layers=layers)
    draft = dataclasses.replace(config, text=text)

    def step(state: AheadState) -> AheadState:
        own = {**params, "decoder": truncate_layers(params["decoder"], layers)}
        said, first = _say(draft, guesses, own, state, _first(state.cache, layers), state.given, 0)
        state = dataclasses.replace(state, cache=_with_first(state.cache, first, layers))
        return advance(config, params, state, said, jnp.ones_like(state.done), controls)

    return ahead.repeat(step, state, target)


def _say(
    config: SmolVLMConfig,
    guesses: int,
    params: Any,
    state: AheadState,
    cache: KVCache,
    given: Bool[Array, "B S"],
    back: int,
) -> tuple[Int[Array, "B G"], KVCache]:
    """What a draft says behind the newest token, which it is fed with the `back` tokens before; and its cache."""
    at = state.length - 1 - back
    newest = jnp.take_along_axis(state.words, at[:, None] + jnp.arange(back + 1), axis=1)

    def say(cache: KVCache, tokens: Int[Array, "B T"]) -> tuple[KVCache, Int[Array, " B"]]:
        own, fed = jax.lax.optimization_barrier((params, tokens))
        out = forward(config, own, {"input_ids": fed}, cache, "last")
        assert out.cache is not None
        return out.cache, jnp.argmax(out.logits[:, -1], axis=-1).astype(jnp.int32)

    def go_on(carry: tuple[KVCache, Array], _: None) -> tuple[tuple[KVCache, Array], Array]:
        new, token = say(carry[0], carry[1][:, None])
        return (new, token), token

    carry = say(dataclasses.replace(cache, index=at, valid=state.fed(given, at)), newest)
    (new, _), more = jax.lax.scan(go_on, carry, length=guesses - 1)
    said = jnp.concatenate([carry[1][None], more]).T
    return said, dataclasses.replace(new, index=cache.index, valid=cache.valid)


def _first(cache: KVCache, layers: int) -> KVCache:
    """The cache of the first `layers` layers."""

    def cut(slots: Any) -> Any:
        return slots[:layers] if isinstance(slots, tuple) else jax.tree.map(lambda leaf: leaf[:layers], slots)

    cross = None if cache.cross is None else tuple(cut(kind) for kind in cache.cross)
    return dataclasses.replace(cache, k=cut(cache.k), v=cut(cache.v), cross=cross)


def _with_first(cache: KVCache, first: KVCache, layers: int) -> KVCache:
    """`cache` with the slots of the first layers from `first`."""

    def joined(new: Any, old: Any) -> Any:
        if isinstance(old, tuple):
            return (*new, *old[layers:])
        return jax.tree.map(lambda fresh, whole: whole.at[:layers].set(fresh), new, old)

    cross = cache.cross
    if cross is not None:
        cross = tuple(joined(*pair) for pair in zip(first.cross, cross, strict=True))
    return dataclasses.replace(cache, k=joined(first.k, cache.k), v=joined(first.v, cache.v), cross=cross)
