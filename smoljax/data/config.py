"""What a training run reads, as frozen dataclasses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from smoljax.errors import UsageError

OnError = Literal["raise", "skip"]
LossOn = Literal["smolvlm2", "answers"]


def check_choice(name: str, value: str, choices: object) -> None:
    """UsageError unless `value` is one of the strings of a Literal type."""
    known = get_args(choices)
    if value not in known:
        raise UsageError(f"{name} is {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture.

    Attributes:
      data: "tfds:NAME[/CONFIG][:SPLIT]" or the path of a .jsonl file.
      mapping: the name of a registered mapping, or a function from an example to a `Record`; None takes the
        one registered under the data set's name.
      weight: its share of the records drawn, relative to the other sources.
      options: for the mapping, e.g. {"questions": 4, "caption": True}.
    """

    data: str
    mapping: str | Callable[..., Any] | None = None
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """UsageError for a weight that is not above 0."""
        if not self.weight > 0:
            raise UsageError(f"{self.data}: weight is {self.weight}; it must be above 0")


@dataclass(frozen=True)
class DataConfig:
    """How sources become batches; every size is static, as compiled programs need it.

    Attributes:
      sources: at least one.
      batch_size: rows of a batch over all hosts; each host makes batch_size / shard_count of them.
      sequence_length: T, tokens of a row.
      max_tiles: I, tiles of a row.
      pack: several records a row (never seeing each other) instead of one.
      loss_on: "smolvlm2" or "answers", see `smoljax.data.encode.encode`.
      longest_edge, split: of pictures, instead of the checkpoint's.
      on_error: "raise" at a record that cannot be used, or "skip" and count it.
      shuffle: another order each epoch; False keeps the files' order.
      max_pairs: M, contrastive pairs of a row; None: 1, or max_tiles when packing.
      packing_window: rows that are open at once when packing.
      fit: of a record with several conversations, leave out those that no longer fit the row.
      branches: several conversations about one picture share its tokens as branches of one sequence. False: a record
        has one (or is refused), and attention may go by a kernel that knows no branches (TPU).
      threads: that read and encode records; 0 does it in the one thread of `prefetch`.
      prefetch: batches made ahead; 0 makes them when asked.
    """

    sources: tuple[SourceConfig, ...]
    batch_size: int
    sequence_length: int
    max_tiles: int = 1
    pack: bool = False
    loss_on: LossOn = "smolvlm2"
    longest_edge: int | None = None
    split: bool | None = None
    on_error: OnError = "raise"
    shuffle: bool = True
    max_pairs: int | None = None
    packing_window: int = 8
    fit: bool = False
    branches: bool = True
    threads: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        """UsageError for no source, a size below 1 or an unknown choice."""
        if not self.sources:
            raise UsageError("data: no source; give at least one")
        for name, low in (
            ("batch_size", 1),
            ("sequence_length", 1),
            ("max_tiles", 0),
            ("packing_window", 1),
            ("threads", 0),
            ("prefetch", 0),
        ):
            if getattr(self, name) < low:
                raise UsageError(f"data: {name} is {getattr(self, name)}; it must be at least {low}")
        check_choice("data: loss_on", self.loss_on, LossOn)
        check_choice("data: on_error", self.on_error, OnError)

    @property
    def pairs(self) -> int:
        """M, contrastive pairs of a row."""
        if self.max_pairs is not None:
            return self.max_pairs
        return max(1, self.max_tiles) if self.pack else 1
