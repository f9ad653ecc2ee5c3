"""What a caller says about generation, and what comes back."""

from dataclasses import dataclass, field
from typing import Any, Literal

from smoljax.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the best token (greedy); above, scores are divided by it and a token is drawn.
      top_k: draw among the k best only; 0 means all.
      top_p: draw among the fewest tokens that hold this share of the probability; 1 means all.
      repetition_penalty: above 1 makes tokens of prompt and answer less likely.
      seed: of the draws; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        if not self.temperature >= 0:
            raise UsageError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")

    @property
    def static(self) -> tuple[bool, bool]:
        """Whether tokens are drawn, and whether repeated ones are penalised: what programs differ by."""
        return self.temperature > 0, self.repetition_penalty != 1.0


@dataclass(frozen=True)
class Lookup:
    """Guessing ahead from what was said before (`smoljax.generation.lookup`); the answer stays the same.

    Attributes:
      guesses: tokens fed ahead in one pass.
      ngram: how many last tokens must have been said before.
    """

    guesses: int = 8
    ngram: int = 3

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        if self.guesses < 1 or self.ngram < 1:
            raise UsageError(f"guesses {self.guesses} and ngram {self.ngram} must be at least 1")


@dataclass(frozen=True, eq=False)
class Draft:
    """Guessing ahead with a draft model (`smoljax.generation.draft`); the answer stays the same.

    Give one of `layers` and `model`.

    Attributes:
      guesses: tokens that the draft says ahead of one pass.
      layers: the draft is the model's own first layers, with its final norm and head.
      model: the draft is another loaded model (a `VLM` or its `Generator`) of the same vocabulary: a smaller one, or
        the same in fewer bits. A text model is told the words only; another is shown the pictures too.
    """

    guesses: int = 4
    layers: int | None = None
    model: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range, and where not one draft is named."""
        if self.guesses < 1:
            raise UsageError(f"guesses is {self.guesses}; a draft says at least 1")
        if (self.layers is None) == (self.model is None):
            raise UsageError(
                "a draft is either the model's own first layers or another model: give one of them"
            )
        if self.layers is not None and self.layers < 1:
            raise UsageError(f"a draft of {self.layers} layers says nothing; give at least 1")


#: How to guess ahead.
Ahead = Lookup | Draft


@dataclass
class Timings:
    """Wall seconds of one generation; `compile_s` is 0 once the bucket's programs are there.

    `decode_steps` counts the tokens of a row after its first, `passes` the passes through the model that made them;
    `drafted` the guesses that were checked in these, of all rows, `accepted` those that were kept.
    """

    compile_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens a second of one row after its first token; 0 where there was only one."""
        return self.decode_steps / self.decode_s if self.decode_s > 0 else 0.0


@dataclass
class Generation:
    """One row's answer: token ids without padding (a final stop id included) and why it ended."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
