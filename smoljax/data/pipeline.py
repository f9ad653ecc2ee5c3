"""Sources → an endless stream of batches that can stop and go on exactly where it was. Built on Grain."""

import functools
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from smoljax.data.config import DataConfig
from smoljax.data.encode import Example, encode
from smoljax.data.packing import Batch, Packer, Row, RowShape, batch_arrays
from smoljax.data.records import Source
from smoljax.data.sources import count_reasons, open_source
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.processor import Processor

State = dict[str, Any]

_VERSION = 1


def make_iterator(
    config: DataConfig,
    processor: Processor,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    start: int = 0,
) -> "BatchIterator":
    """Opens the sources of a config and streams batches from them (see `pipeline`).

    Args:
      config: sources and sizes.
      processor: of the model that will be trained.
      seed: of the order and of what mappings draw; 0 or more.
      shard_index, shard_count: this host's number and how many there are.
      start: batches to leave out at the beginning, as if they had been taken.

    Raises:
      UsageError, SmoljaxError: a source cannot be opened; the sizes do not fit together.
    """
    sources = [
        open_source(item.data, item.mapping, seed=seed, on_error=config.on_error, **item.options)
        for item in config.sources
    ]
    weights = [item.weight for item in config.sources]
    iterator = pipeline(sources, processor, config, weights, seed, shard_index, shard_count)
    iterator.advance(start)
    return iterator


def pipeline(
    sources: Sequence[Source],
    processor: Processor,
    config: DataConfig,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> "BatchIterator":
    """An endless stream of batches from open sources.

    Each source is put in another order each epoch and dealt out to the hosts; its epochs follow each other
    without a seam, and sources are mixed by weight. What a batch holds depends on the arguments alone, never on
    threads or time.

    Args:
      sources: `config.sources` is not looked at.
      processor: of the model that will be trained.
      config: all sizes.
      weights: share of each source; None: equal.
      seed: of the order; 0 or more.
      shard_index, shard_count: this host's number and how many there are.

    Raises:
      UsageError: batch_size is not a multiple of shard_count.
      SmoljaxError: Grain is not installed; a record cannot be used (with `on_error="raise"`).
    """
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be at least 0")
    if not 0 <= shard_index < shard_count:
        raise UsageError(f"shard {shard_index} of {shard_count}: must be from 0 to {shard_count - 1}")
    if config.batch_size % shard_count:
        raise UsageError(
            f"data: batch_size {config.batch_size} is not a multiple of the {shard_count} hosts; change it"
        )
    image = processor.config.image
    shape = RowShape(
        tokens=config.sequence_length,
        tiles=config.max_tiles,
        pairs=config.pairs,
        tile_size=0 if image is None else image.tile_size,
        pad_id=processor.pad_id,
        patches=_patch_sizes(sources),
        branches=config.branches,
    )
    stream = _stream(sources, processor, config, shape, weights, seed, shard_index, shard_count)
    made_for = {
        "sources": [source.name for source in sources],
        "records": [len(source) for source in sources],
        "weights": [float(item) for item in (weights or [1.0] * len(sources))],
        "seed": seed,
        "shard_index": shard_index,
        "shard_count": shard_count,
        "batch_size": config.batch_size,
        "shuffle": config.shuffle,
        "pack": config.pack,
        "sequence_length": config.sequence_length,
        "max_tiles": config.max_tiles,
        "pairs": config.pairs,
        "packing_window": config.packing_window,
        "loss_on": config.loss_on,
        "longest_edge": config.longest_edge,
        "split": config.split,
        "fit": config.fit,
        "on_error": config.on_error,
    }
    patience = _longest_wait([len(source) for source in sources], made_for["weights"])
    batches = _Batches(stream, shape, config, config.batch_size // shard_count, patience)
    return BatchIterator(batches, sources, config, made_for)


class BatchIterator:
    """Batches without end; `smoljax.data.packing.batch_arrays` says what is in one.

    Attributes:
      sources: where the records come from.
    """

    def __init__(
        self, batches: "_Batches", sources: Sequence[Source], config: DataConfig, made_for: State
    ) -> None:
        import grain

        self.sources = tuple(sources)
        self._batches = batches
        # The thread hands over each batch with the state right after it, so making batches ahead costs nothing
        # in exactness.
        self._ahead = grain.experimental.ThreadPrefetchDatasetIterator(batches, config.prefetch)
        self._made_for = made_for
        weakref.finalize(self, _close, self._ahead, batches)  # before the interpreter takes modules apart

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        return next(self._ahead)

    def get_state(self) -> State:
        """Where the stream stands after the last batch taken: small, plain JSON, for this host alone."""
        return {"version": _VERSION, "made_for": self._made_for, "stream": self._ahead.get_state()}

    def set_state(self, state: State) -> None:
        """Goes on right after the batch that was the last one when `get_state` was called.

        Raises:
          SmoljaxError: the state is of other data, sizes, seed or settings of the config. (What a mapping or its
            options change is not seen here; `smoljax train` compares those too.)
        """
        if state.get("version") != _VERSION:
            raise SmoljaxError(
                f"data state of version {state.get('version')}, this is {_VERSION}; start anew"
            )
        for key, mine in self._made_for.items():
            if (other := state["made_for"].get(key)) != mine:
                raise SmoljaxError(
                    f"the saved state of the data has {key} {other}, this run has {mine}; put it back, or start anew"
                )
        self._ahead.set_state(state["stream"])

    def advance(self, batches: int) -> None:
        """Leaves out that many batches; at once where every record makes one row, else by making them."""
        if batches < 0:
            raise UsageError(f"start is {batches}; it must be at least 0")
        jump = self._batches.after(batches, self._ahead.get_state())
        if jump is not None:
            self._ahead.set_state(jump)
            return
        for _ in range(batches):
            next(self._ahead)

    def skipped(self) -> dict[str, dict[str, int]]:
        """How many records were left out so far: source → reason → count (made ahead ones included)."""
        return {name: dict(counter) for name, counter in count_reasons(self.sources).items()}

    def close(self) -> None:
        """Ends the threads."""
        _close(self._ahead, self._batches)


def _close(ahead: Any, batches: "_Batches") -> None:
    ahead.close()
    batches.close()
    # Its __del__ closes again, at exit after the modules that it needs are gone.
    ahead.close = _nothing


def _nothing() -> None:
    pass


class _Batches:
    """Rows gathered to batches: an iterator with a state, as Grain's prefetching takes it."""

    def __init__(self, stream: Any, shape: RowShape, config: DataConfig, rows: int, patience: int) -> None:
        import grain

        self._stream = stream
        self._shape = shape
        self._config = config
        self._rows = rows
        self._patience = patience
        self._packer = Packer(shape, config.packing_window)
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=4 * config.threads)
        self._found = iter(stream.to_iter_dataset(options, allow_nones=True))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows: list[Sequence[Example]] = []
        while len(rows) < self._rows:
            place, example = self._next_example()
            if not self._config.pack:
                rows.append((example,))
            elif (row := self._packer.put(place, example)) is not None:
                rows.append(row.examples)
        return batch_arrays(rows, self._shape)

    def _next_example(self) -> tuple[int, Example]:
        for _ in range(self._patience):
            if (found := next(self._found)) is not None:
                return found
        raise SmoljaxError(
            f"not one of {self._patience} records in turn could be used; run with on_error raise to see why"
        )

    def get_state(self) -> State:
        return {"found": self._found.get_state(), "open": [row.places for row in self._packer.rows]}

    def set_state(self, state: State) -> None:
        # Open rows are kept as places in the stream: their examples are read again, which gives the same.
        self._found.set_state(state["found"])
        self._packer.rows = []
        for places in state["open"]:
            row = Row(self._shape)
            for place in places:
                found = self._stream[place]
                if found is None or not row.fits(found[1]):
                    raise SmoljaxError(
                        "a record of the saved state is no longer as it was; have the data or their options changed?"
                    )
                row.add(*found)
            self._packer.rows.append(row)

    def after(self, batches: int, state: State) -> State | None:
        """The state that many batches after one; None where that depends on the records."""
        if self._config.pack or self._config.on_error == "skip":
            return None
        return {**state, "found": {"next_index": state["found"]["next_index"] + batches * self._rows}}

    def close(self) -> None:
        self._found.close()


def _longest_wait(lengths: Sequence[int], weights: Sequence[float]) -> int:
    """Places of the mixed stream in which every record of every source comes at least once.

    Two epochs of a source hold each of its records wherever one begins to look.
    """
    total = sum(weights)
    return max(math.ceil(2 * n * total / weight) for n, weight in zip(lengths, weights, strict=True)) + len(
        lengths
    )


def _stream(
    sources: Sequence[Source],
    processor: Processor,
    config: DataConfig,
    shape: RowShape,
    weights: Sequence[float] | None,
    seed: int,
    shard_index: int,
    shard_count: int,
) -> Any:
    """An endless Grain MapDataset of (place, Example), None where a record is left out."""
    try:
        import grain
    except ImportError as error:
        raise SmoljaxError("reading data for training needs Grain: pip install 'smoljax[data]'") from error

    def one(number: int, source: Source) -> Any:
        order = _Order(len(source), (seed, number) if config.shuffle else None)
        turns = grain.MapDataset.range(len(source)).map_with_index(order).repeat()
        return turns[shard_index::shard_count].map(_Loader(source, processor, config, shape))

    parts = [one(number, source) for number, source in enumerate(sources)]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    return mixed.map_with_index(lambda place, example: (place, example))


class _Order:
    """Place in the endless stream of one source → (epoch, index).

    Whole permutations, not Grain's `shuffle`: that one takes 0.3 to 5 ms a record where there are fewer than
    some hundred (seen in 0.2.18), and its seeds of neighbouring runs give the same orders an epoch apart.
    """

    def __init__(self, length: int, seed: tuple[int, int] | None) -> None:
        self._length = length
        self._seed = seed
        self._permutation = functools.lru_cache(maxsize=3)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        assert self._seed is not None
        return np.random.default_rng((*self._seed, epoch)).permutation(self._length)

    def __call__(self, place: int, _: int) -> tuple[int, int]:
        epoch, index = divmod(int(place), self._length)
        return epoch, index if self._seed is None else int(self._permutation(epoch)[index])


class _Loader:
    """(epoch, index) → the example of that record, None where it is left out."""

    def __init__(self, source: Source, processor: Processor, config: DataConfig, shape: RowShape) -> None:
        self._source = source
        self._processor = processor
        self._config = config
        self._shape = shape

    def __call__(self, turn: tuple[int, int]) -> Example | None:
        epoch, index = turn
        record = self._source.read(index, epoch)
        if record is None:
            return None
        config = self._config
        try:
            example = encode(
                record,
                self._processor,
                loss_on=config.loss_on,
                longest_edge=config.longest_edge,
                split=config.split,
                max_length=config.sequence_length,
                fit=config.fit,
            )
            try:
                self._shape.check(example)
            except SmoljaxError as error:
                raise SmoljaxError(f"record {record.id}: {error}") from error
        except SmoljaxError as error:
            if config.on_error == "raise":
                raise type(error)(f"{self._source.where(index)}, {error}") from error
            self._source.skip(index, str(error))
            return None
        return example


def _patch_sizes(sources: Sequence[Source]) -> dict[str, int]:
    """Dense labels and their numbers of patches, from the first usable record of each source."""
    sizes: dict[str, int] = {}
    for source in sources:
        record = next((found for index in range(len(source)) if (found := source.read(index))), None)
        for name, labels in () if record is None else record.patches.items():
            if sizes.setdefault(name, labels.size) != labels.size:
                raise SmoljaxError(
                    f"{source.name}: {labels.size} labels {name!r}, another source has {sizes[name]}; dense labels "
                    "must be of one size"
                )
    return sizes
