"""What a caller says about an evaluation, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smoljax.data.config import OnError, check_choice
from smoljax.errors import UsageError
from smoljax.evaluation.metrics.bootstrap import Interval

Progress = Callable[[int, int], None]
"""Called with the pictures done and the pictures there are."""


@dataclass(frozen=True)
class EvalConfig:
    """How to evaluate.

    Attributes:
      limit: the first so many pictures; None: all.
      batch_size: rows of a batch; None: what fits 256 MB of keys and values, at most 128.
      blind: grey pictures in place of the real ones.
      kinds: questions of these kinds only (vqa).
      split_by: the key of a record's `meta` by which vqa accuracy is given apart.
      max_new_tokens: the longest answer; None: 24 for questions, 96 for descriptions, 8 for places.
      pointing: boxes for which the pointing game is played (grounding), one a picture; 0: none.
      seed, draws: of the bootstrap.
      longest_edge, split: of pictures, as in `Processor.__call__`.
      on_error: "raise" at a record that cannot be used, or "skip" and count it.
    """

    limit: int | None = None
    batch_size: int | None = None
    blind: bool = False
    kinds: tuple[str, ...] = ()
    split_by: str = "kind"
    max_new_tokens: int | None = None
    pointing: int = 200
    seed: int = 0
    draws: int = 2000
    longest_edge: int | None = None
    split: bool | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        """UsageError for a number out of range or an unknown choice."""
        check_choice("on_error", self.on_error, OnError)
        for name, low in (
            ("limit", 1),
            ("batch_size", 1),
            ("max_new_tokens", 1),
            ("pointing", 0),
            ("draws", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}; it must be at least {low}")


@dataclass(frozen=True)
class Result:
    """What a task found.

    Attributes:
      task: its name.
      n: samples scored (questions, descriptions, pictures, boxes, records).
      metrics: name → figure with its interval.
      predictions: one dict a sample, for a .jsonl file.
      skipped: records left out, number → why (with `on_error="skip"`).
    """

    task: str
    n: int
    metrics: dict[str, Interval]
    predictions: list[dict[str, Any]] = field(repr=False)
    skipped: dict[int, str] = field(default_factory=dict)
