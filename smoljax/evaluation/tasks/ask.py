"""What the tasks share: walking through the records, and putting questions to the model."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from smoljax.data.records import Record, Source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.answering import Answerer
from smoljax.evaluation.config import EvalConfig, Progress
from smoljax.evaluation.metrics.bootstrap import Interval, bootstrap, bootstrap_ratio
from smoljax.evaluation.samples import Item, Question, blinded, picture_name
from smoljax.generation.options import Generation
from smoljax.grounding.locate import answer_text
from smoljax.processing.images import open_image
from smoljax.vlm import VLM

T = TypeVar("T")


def quiet(done: int, total: int) -> None:
    """Progress that nobody is shown."""


def usable(
    source: Source, config: EvalConfig, use: Callable[[Record], T], progress: Progress = quiet
) -> Iterator[tuple[int, T]]:
    """What `use` makes of the first `config.limit` records that can be used, their pictures opened, by number.

    Raises:
      SmoljaxError: naming the record, if it or what `use` makes of it fails and `config.on_error` is "raise".
    """
    total = len(source) if config.limit is None else min(len(source), config.limit)
    given = 0
    for index in range(len(source)):
        if given == total:
            return
        record = source.read(index)
        try:
            found = None if record is None else (index, use(_opened(record)))
        except SmoljaxError as error:
            _leave_out(source, index, config, error)
            found = None
        if found is not None:
            given += 1
            yield found
        progress(index + 1, max(total, index + 1))


def _opened(record: Record) -> Record:
    """The record with its pictures decoded."""
    try:
        images = tuple(open_image(image) for image in record.images)
    except SmoljaxError as error:
        raise type(error)(f"record {record.id}: {error}") from error
    return dataclasses.replace(record, images=images, meta={**record.meta, "picture": picture_name(record)})


def _leave_out(source: Source, index: int, config: EvalConfig, error: SmoljaxError) -> None:
    """Notes the record as left out, or raises the error with its place where that is not wanted."""
    if config.on_error == "raise":
        raise type(error)(f"{source.where(index)}, {error}") from error
    source.skip(index, str(error))


def ask(
    vlm: VLM,
    source: Source,
    make: Callable[[Record], Item],
    max_new_tokens: int,
    config: EvalConfig,
    progress: Progress,
) -> Iterator[tuple[Item, list[tuple[Question, str, Generation]]]]:
    """Every item, its picture named, with its questions, the answer to each as text, and its tokens."""
    asked = -1  # the number of the record whose item was given out last

    def items() -> Iterator[Item]:
        nonlocal asked
        for number, item in usable(source, config, make):
            asked = number
            yield dataclasses.replace(item, images=blinded(item.images)) if config.blind else item

    answerer = Answerer(
        vlm,
        config.max_new_tokens or max_new_tokens,
        rows=config.batch_size,
        longest_edge=config.longest_edge,
        split=config.split,
    )
    total = len(source) if config.limit is None else min(len(source), config.limit)
    answers = answerer.answers(items(), lambda error: _leave_out(source, asked, config, error))
    for done, (item, found) in enumerate(answers, 1):
        texts = [answer_text(vlm, generation) for generation in found]
        item = item if item.picture else dataclasses.replace(item, picture=f"#{done}")
        yield item, list(zip(item.questions, texts, found, strict=True))
        progress(done, total)


class Tally:
    """Gathers what each sample adds to a figure, and whose picture it belongs to; figures come out with intervals.

    Attributes:
      config: seed and draws of the bootstrap.
    """

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self._values: dict[str, tuple[list[Any], list[str]]] = {}

    def add(self, name: str, picture: str, value: Any) -> None:
        """Notes a sample's value (a number, or counts [K]) of the figure `name`."""
        values, pictures = self._values.setdefault(name, ([], []))
        values.append(value)
        pictures.append(picture)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def any(self, name: str) -> bool:
        """Whether anything was counted for a figure: some value that is not 0."""
        return name in self and bool(np.any(self._values[name][0]))

    def mean(self, name: str) -> Interval:
        """The mean of a figure."""
        values, pictures = self._values[name]
        return bootstrap(values, self.config.seed, self.config.draws, pictures)

    def ratio(self, name: str, figure: Callable[[Any], Any]) -> Interval:
        """A figure of summed counts (`bootstrap_ratio`)."""
        values, pictures = self._values[name]
        return bootstrap_ratio(
            np.asarray(values), figure, len(values), self.config.seed, self.config.draws, pictures
        )

    def means(self) -> dict[str, Interval]:
        """The means of all figures, in the order in which they first came."""
        return {name: self.mean(name) for name in self._values}
