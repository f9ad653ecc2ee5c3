"""Reads prompts in chunks into a cache of their own, from where a kept beginning ends."""

import collections.abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.generation import programs
from smoljax.generation import rows as batch_programs
from smoljax.generation.buckets import round_up
from smoljax.generation.generator import Generator
from smoljax.generation.prefixes import PrefixCache, Segment, symbols, tile_digest
from smoljax.nn.by_layer import compile_by_layer

#: Sizes of a chunk of a prompt; all but the last one are full.
CHUNKS = (32, 64, 128, 192, 256)
#: Slots of the batch's cache, and of a prompt's while it is read.
SPANS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)

#: The reading of a prompt, a chunk at a time; what it returns: its cache, scores, and tokens that were there already.
Chunks = collections.abc.Generator[None, None, tuple[Any, Any, int]]


@dataclass
class Stats:
    """What an engine did so far.

    Attributes:
      requests: that were given a row.
      prefilled_tokens: prompt tokens that were fed.
      cached_tokens: prompt tokens whose keys and values were there already.
      tiles: that went through the patch encoder.
      new_tokens: of all answers.
      steps: passes of the batch.
      row_steps: running rows, added up over the passes.
      compilations: programs that were compiled, or read from the compilation cache.
    """

    requests: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    tiles: int = 0
    new_tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    compilations: int = 0

    @property
    def mean_rows(self) -> float:
        """Running rows of a pass, in the mean."""
        return self.row_steps / self.steps if self.steps else 0.0


class Compiler:
    """Programs by name and sizes, kept with the generator: engines on one model share them."""

    def __init__(self, generator: Generator, stats: Stats) -> None:
        self.stats, self._generator = stats, generator

    def compile(
        self,
        name: str,
        sizes: tuple[int, ...],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """The program `name` for `args` of these sizes, compiled at most once."""

        def make() -> Callable[..., Any]:
            self.stats.compilations += 1
            return jax.jit(function, donate_argnums=donate).lower(*args).compile()

        return self._generator.keep(("serving", name, sizes), make)

    def extend(self, sizes: tuple[int, ...], args: tuple[Any, ...]) -> Callable[..., Any]:
        """`smoljax.generation.programs.extend` for parameters, chunk and cache, which is donated."""
        function = partial(programs.extend, self._generator.config)
        if not self._generator.by_layer(args[0], "decoder"):
            return self.compile("extend", sizes, function, args, donate=(2,))

        def make() -> Callable[..., Any]:
            self.stats.compilations += 1
            return compile_by_layer(function, "decoder", *args, own=lambda batch, cache: cache.per_layer())

        return self._generator.keep(("serving", "extend", sizes), make)


@dataclass(frozen=True)
class Prompt:
    """One prompt without padding.

    Attributes:
      ids: [n] int32.
      places: [n] bool, image tokens.
      symbols: [n, 2] uint64 (`smoljax.generation.prefixes.symbols`).
      tiles: `pixel_values` [1, I, C, h, w] of the real tiles, and `pixel_attention_mask` where there is one.
    """

    ids: np.ndarray
    places: np.ndarray
    symbols: np.ndarray
    tiles: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


def make_prompt(config: SmolVLMConfig, ids: np.ndarray, batch: Mapping[str, np.ndarray]) -> Prompt:
    """The prompt of `ids` [n] with the pictures of a batch of one row."""
    tiles: dict[str, np.ndarray] = {}
    if batch.get("pixel_values") is not None:
        real = np.asarray(batch["tile_mask"], bool)
        names = ("pixel_values", "pixel_attention_mask")
        tiles = {name: np.asarray(batch[name])[real][None] for name in names if batch.get(name) is not None}
    count = tiles["pixel_values"].shape[1] if tiles else 0
    digests = [tile_digest(tiles, tile) for tile in range(count)]
    places = (ids == config.image_token_id) if count else np.zeros(len(ids), bool)
    return Prompt(ids, places, symbols(ids, places, config.image_seq_len, digests), tiles)


class Reader:
    """Chunked prefill with one model, beginnings of prompts taken from a `PrefixCache` and laid into it."""

    def __init__(
        self, generator: Generator, slots: int, chunk: int, prefixes: PrefixCache, compiled: Compiler
    ) -> None:
        """For prompts of fewer than `slots` tokens, fed at most `chunk` at a time."""
        self.generator, self.slots, self.chunk = generator, slots, chunk
        self._prefixes, self._programs = prefixes, compiled
        self._chunks = (*(size for size in CHUNKS if size < chunk), chunk)

    def read(self, params: Any, prompt: Prompt) -> Chunks:
        """Reads a prompt of n tokens, and stops behind each chunk but the last.

        Returns:
          Its cache [1, S, …], the first n slots filled; the scores [1, V] behind its last token; and how many tokens
          were not fed, since their keys and values were there.
        """
        n, config = len(prompt), self.generator.config
        chain = self._prefixes.find(prompt.symbols)
        known = sum(count for _, count in chain)
        start = min(known, n - 1)  # the last token is fed in any case, for its scores
        taken, fed, kept = list(_taken(chain, start)), list(self._pieces(start, n)), self._kept(prompt, known)
        ends = [at + self._size(count) for at, count in (*fed, *kept)]
        ends += [at + self._size(len(segment.symbols)) for segment, at, _ in taken]
        slots = round_up(max(ends), SPANS, self.slots + self.chunk)
        empty = partial(batch_programs.empty_cache, config, 1, slots)
        cache = self._programs.compile("cache", (slots,), empty, ())()
        for segment, at, count in taken:
            args = (cache, segment.data, np.int32(at), np.int32(count))
            sizes = (slots, self._size(len(segment.symbols)))
            function = partial(batch_programs.paste, config)
            cache = self._programs.compile("paste", sizes, function, args, donate=(0,))(*args)
        features, logits = self._features(prompt, start), None
        for number, (at, count) in enumerate(fed):
            if number:
                yield
            batch, features = self._chunk(prompt, at, count, features)
            args = (params, batch, cache)
            sizes = (slots, self._size(count), int("image_features" in batch))
            cache, logits = self._programs.extend(sizes, args)(*args)
        self._keep(prompt, chain, kept, cache)
        self._programs.stats.prefilled_tokens += n - start
        self._programs.stats.cached_tokens += start
        return cache, logits, start

    def _chunk(
        self, prompt: Prompt, at: int, count: int, features: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The batch of one chunk, padded on the right, and the image tokens that are left after it."""
        size = self._size(count)
        tokens = np.zeros((1, size), np.int32)
        tokens[0, :count] = prompt.ids[at : at + count]
        batch = {"input_ids": tokens, "attention_mask": np.arange(size)[None] < count}
        seats = int(prompt.places[at : at + count].sum())
        if seats:
            assert features is not None
            own = np.zeros((1, 1, size, features.shape[-1]), features.dtype)
            own[0, 0, :seats], features = features[:seats], features[seats:]
            batch["image_features"] = own
        return batch, features

    def _features(self, prompt: Prompt, start: int) -> np.ndarray | None:
        """Image tokens [X, D] from the prompt's token `start` on; tiles that end before are not encoded."""
        if not prompt.places[start:].any():
            return None
        first, seen = divmod(int(prompt.places[:start].sum()), self.generator.config.image_seq_len)
        tiles = {name: value[:, first:] for name, value in prompt.tiles.items()}
        count = tiles["pixel_values"].shape[1]
        before, stats = self.generator.num_compilations, self._programs.stats
        found = self.generator.encode_images({**tiles, "tile_mask": np.ones((1, count), bool)})
        stats.compilations += self.generator.num_compilations - before
        stats.tiles += count
        flat = np.asarray(found)
        return flat.reshape(-1, flat.shape[-1])[seen:]

    def _kept(self, prompt: Prompt, known: int) -> list[tuple[int, int]]:
        """First token and length of the parts of a prompt that are new; one ends with the last picture."""
        if not self._prefixes.limit:
            return []
        pictures = int(np.flatnonzero(prompt.places)[-1]) + 1 if prompt.places.any() else 0
        middle = max(known, pictures)
        return [*self._pieces(known, middle), *self._pieces(middle, len(prompt))]

    def _keep(
        self, prompt: Prompt, chain: list[tuple[Segment, int]], kept: list[tuple[int, int]], cache: Any
    ) -> None:
        """Lays the new parts of a prompt into the prefix cache."""
        longer: list[tuple[Segment, int]] | None = chain
        for at, count in kept:
            size, args = self._size(count), (cache, np.int32(at))
            function = partial(batch_programs.cut, self.generator.config, size)
            data = self._programs.compile("cut", (cache.num_slots, size), function, args)(*args)
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
            longer = self._prefixes.add(longer, prompt.symbols[at : at + count], data, held)
            if longer is None:
                return

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """First token and length of each chunk between two places."""
        for at in range(start, end, self.chunk):
            yield at, min(self.chunk, end - at)

    def _size(self, count: int) -> int:
        """Tokens of the chunk that so many are padded to."""
        return round_up(count, self._chunks, self.chunk)


def _taken(chain: list[tuple[Segment, int]], start: int) -> Iterator[tuple[Segment, int, int]]:
    """Segments, their first slot and how many of their tokens are taken, for the first `start` tokens of a chain."""
    place = 0
    for segment, count in chain:
        if place < start:
            yield segment, place, min(count, start - place)
        place += count
