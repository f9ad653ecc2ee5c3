"""Opening data sets by what stands in a config, and what all of them have in common."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from smoljax.data.config import OnError, check_choice
from smoljax.data.mappings import RecordMapping, find_mapping
from smoljax.data.records import Record, Source, check_caption, check_conversation
from smoljax.errors import SmoljaxError, UsageError


class MappedSource:
    """Examples of any kind with a mapping on top; see `smoljax.data.records.Source`.

    Attributes:
      name: what it was opened from.
      skipped: number → why, of the records left out so far.
    """

    def __init__(
        self,
        name: str,
        length: int,
        example: Callable[[int], Any],
        mapping: Callable[[Any, np.random.Generator], Record],
        *,
        seed: int = 0,
        on_error: OnError = "raise",
        where: Callable[[int], str] | None = None,
    ) -> None:
        """Wraps examples.

        Args:
          name: for messages.
          length: how many examples there are.
          example: gives one by its number; raises SmoljaxError for a bad one.
          mapping: from an example and a generator to a record (`smoljax.data.mappings.find_mapping`).
          seed: of the draws.
          on_error: "raise", or "skip": such records are None in `read`.
          where: a record's place, for messages; by default NAME[NUMBER].
        """
        check_choice("on_error", on_error, OnError)
        if length < 1:
            raise SmoljaxError(f"{name}: no records")
        self.name = name
        self.skipped: dict[int, str] = {}
        self._length = length
        self._example = example
        self._mapping = mapping
        self._seed = seed
        self._on_error = on_error
        self._where = where

    def __len__(self) -> int:
        return self._length

    def where(self, index: int) -> str:
        """Where a record stands, for messages."""
        return f"{self.name}[{index}]" if self._where is None else self._where(index)

    def __getitem__(self, index: int) -> Record:
        """The record as it is in epoch 0; SmoljaxError, whatever `on_error` says, if it cannot be used."""
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length, 0)

    def read(self, index: int, epoch: int = 0) -> Record | None:
        """The record as it is in one epoch: draws depend on (seed, epoch, index). None where it is left out.

        Raises:
          SmoljaxError: the record cannot be used and `on_error` is "raise".
        """
        try:
            return self._make(index, epoch)
        except SmoljaxError as error:
            if self._on_error == "raise":
                raise
            self.skip(index, str(error))
            return None

    def skip(self, index: int, why: str) -> None:
        """Notes a record as left out. It is tried again each epoch: what is read never hangs on the past."""
        self.skipped[index] = why

    def _make(self, index: int, epoch: int) -> Record:
        example = self._example(index)
        rng = np.random.default_rng((self._seed, epoch, index))
        try:
            record = self._mapping(example, rng)
        except SmoljaxError as error:
            if str(error).startswith(self.where(index)):
                raise
            raise type(error)(f"{self.where(index)}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SmoljaxError(
                f"{self.where(index)}: the mapping failed ({type(error).__name__}: {error}); "
                "is it the right one for this data set?"
            ) from error
        place = f"{self.where(index)} (record {record.id})"
        for talk in record.conversations:
            check_conversation(talk, len(record.images), place)
        check_caption(record.caption, place)
        return record


def open_source(
    data: str,
    mapping: str | RecordMapping | None = None,
    *,
    seed: int = 0,
    on_error: OnError = "raise",
    data_dir: str | Path | None = None,
    **options: Any,
) -> MappedSource:
    """Opens a data set for reading by number.

    Args:
      data: "tfds:NAME[/CONFIG][:SPLIT]" (split "train" if not given; "train[:10%]" is one too), or the path of
        a .jsonl file (docs/data.md describes both).
      mapping: a registered mapping's name, or a function from an example to a `Record`. None: the mapping
        registered under the data set's name; for .jsonl the form that docs/data.md describes.
      seed: of what is drawn anew each epoch.
      on_error: "raise" at a record that cannot be used, or "skip" it.
      data_dir: where TFDS keeps prepared data; None: the cache of smoljax for `scenes`, else TFDS's own.
      options: keyword arguments of the mapping.

    Raises:
      UsageError: neither form, an unknown mapping or option.
      SmoljaxError: the data is missing or broken.
    """
    where = None
    if data.startswith("tfds:"):
        from smoljax.data.tfds import open_tfds

        name, length, example = open_tfds(data, data_dir)
    elif data.endswith(".jsonl"):
        from smoljax.data.jsonl import JsonLines, jsonl_record

        lines = JsonLines(data)
        name, length, example = "jsonl", len(lines), lines.example
        mapping = jsonl_record if mapping is None else mapping
        data, where = str(lines.path), lines.where
    else:
        raise UsageError(f"{data}: not a data set; give tfds:NAME[/CONFIG][:SPLIT] or a .jsonl file")
    function = find_mapping(mapping, name, options)
    return MappedSource(data, length, example, function, seed=seed, on_error=on_error, where=where)


def count_reasons(sources: Iterable[Source]) -> dict[str, Counter[str]]:
    """How many records were left out, by source and reason: an error's last part, numbers written as #."""
    found: dict[str, Counter[str]] = {}
    for source in sources:
        for why in list(source.skipped.values()):  # a copy: threads may be adding
            reason = re.sub(r"\d+", "#", re.split(r"(?<![\"']): ", why)[-1])
            found.setdefault(source.name, Counter())[reason] += 1
    return found
