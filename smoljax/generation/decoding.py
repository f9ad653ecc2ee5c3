"""Kinds of decoding: the programs that make the tokens behind a prefill, and what they read."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.generation import programs
from smoljax.generation.options import Sampling, Timings

#: What every kind's `begin` reads of the prompt.
WORDS = ("input_ids", "attention_mask")

#: What takes a prefill's state to that of decoding, where they differ, and what decodes.
BeginAndDecode = tuple[Callable[..., Any] | None, Callable[..., Any]]


@dataclass(frozen=True)
class Decoding:
    """One kind, as `Generator` compiles and runs it.

    Its state has `tokens` [B, M], `done` [B], `finite` [], `reached()`, how many tokens every running row has, and
    `counted()`, passes, guesses checked and guesses kept.

    Attributes:
      name: of its programs.
      static: what they depend on beside the shapes of the arguments.
      decode: (weights, state, target, controls) → state, in which every row has stopped or has `target` tokens, or
        more where a step brings several.
      begin: (weights, state of the prefill, prompt, most) → the state of `decode`, which makes at most `most` tokens a
        row; None where that is the prefill's own.
      ahead: slots of the cache beyond prompt and answer, for tokens that are fed and not kept.
    """

    name: str
    static: tuple[Hashable, ...]
    decode: Callable[..., Any]
    begin: Callable[..., Any] | None = None
    ahead: int = 0

    def weights(self, own: Any) -> Any:
        """What the programs read: the model's `own` weights, and others beside them."""
        return own

    def weight_shapes(self, own: Any) -> Any:
        """The same in shapes and dtypes."""
        return own

    def prompt(
        self, batch: Mapping[str, np.ndarray], padded: Mapping[str, Any], timings: Timings
    ) -> dict[str, Any]:
        """What `begin` reads of a batch, which is `padded` for the prefill."""
        return {key: padded[key] for key in WORDS}

    def prompt_shapes(
        self, batch: Mapping[str, np.ndarray], shapes: Mapping[str, Any], timings: Timings
    ) -> dict[str, Any]:
        """The same in shapes and dtypes, from those of the prefill; compiles what `prompt` will run."""
        return {key: shapes[key] for key in WORDS}


def one_by_one(config: SmolVLMConfig, sampling: Sampling) -> Decoding:
    """A token a pass, the best one or drawn."""
    static = sampling.static
    return Decoding("decode", static, partial(programs.decode, config, *static))


@dataclass(frozen=True)
class Compiled:
    """The programs of one batch: `vision` only with pictures, the `rest` only for more than one token."""

    vision: Callable[..., Any] | None
    prefill: Callable[..., Any]
    rest: Future[BeginAndDecode] | None = None

    @property
    def decode(self) -> Callable[..., Any] | None:
        """Makes the tokens behind the first one, waited for."""
        return None if self.rest is None else self.rest.result()[1]

    @property
    def begin(self) -> Callable[..., Any] | None:
        """Takes a prefill's state to the one of `decode`, where that is another; waited for."""
        return None if self.rest is None else self.rest.result()[0]
