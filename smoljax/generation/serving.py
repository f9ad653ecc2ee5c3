"""Serving many: requests join a running batch when a row is free and leave it when their answer ends."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import rows as batch_programs
from smoljax.generation.buckets import round_up
from smoljax.generation.generator import Generator
from smoljax.generation.options import Generation, Sampling
from smoljax.generation.prefixes import PrefixCache
from smoljax.generation.reading import SPANS, Chunks, Compiler, Prompt, Reader, Stats, make_prompt


@dataclass(frozen=True)
class Answer:
    """A request's whole answer, and what its prompt cost: `cached_tokens` of it were there already."""

    id: int
    generation: Generation
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Update:
    """New tokens of one request; `answer` with the last of them."""

    id: int
    token_ids: list[int]
    answer: Answer | None = None


@dataclass
class _Request:
    """What was asked, and the answer as far as it is there."""

    id: int
    prompt: Prompt
    limit: int
    sampling: Sampling
    cached: int = 0
    tokens: list[int] = field(default_factory=list)


class Engine:
    """A static batch of rows over one model; every row has its own prompt, length, limit and sampling.

    A greedy answer is the one that `Generator.generate` gives, a drawn one too: neither depends on the other rows.
    """

    def __init__(
        self,
        generator: Generator,
        rows: int = 8,
        slots: int = 2048,
        *,
        stride: int = 16,
        chunk: int = 256,
        prefix_bytes: int = 256 * 2**20,
    ) -> None:
        """An idle engine; nothing is compiled yet.

        Args:
          generator: the model's; its patch encoder's program is shared.
          rows: R, requests that are answered at the same time.
          slots: S, tokens of prompt and answer that a row can hold; at most the model's positions. Memory is taken for
            as many as the rows need (`SPANS`).
          stride: tokens between two looks at who has ended and who may join.
          chunk: tokens of a prompt that are fed at a time.
          prefix_bytes: for keys and values of beginnings of prompts; 0 keeps none.

        Raises:
          UsageError: a number out of its range, or a model whose prompts cannot be read in chunks
            (`smoljax.generation.programs.extend`).
        """
        for name, value in {"rows": rows, "slots": slots, "stride": stride, "chunk": chunk}.items():
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        config = generator.config
        if config.sharing.image_attention != "causal":
            raise UsageError(
                f"image_attention is {config.sharing.image_attention!r}: only models with causal image tokens are "
                "served; take generate or generate_batch"
            )
        self.generator, self.rows, self.stride = generator, rows, stride
        self.slots = min(slots, config.text.max_positions)
        self.stats = Stats()
        self.prefixes = PrefixCache(prefix_bytes)
        self._programs = Compiler(generator, self.stats)
        self._reader = Reader(generator, self.slots, chunk, self.prefixes, self._programs)
        self._queue: deque[_Request] = deque()
        self._seated: dict[int, _Request] = {}  # by row
        self._reading: tuple[_Request, Chunks] | None = None  # whose prompt is being read
        self._state: batch_programs.Rows | None = None
        self._numbers = itertools.count()
        self._stop_ids = np.asarray(generator.stop_ids, np.int32)
        self._read_by: Any = None  # the weights that all keys and values are of

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._queue) + (self._reading is not None)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or being answered."""
        return bool(self.waiting or self._seated)

    def submit(
        self,
        prompt: Mapping[str, np.ndarray] | Sequence[int] | np.ndarray,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
    ) -> int:
        """Queues a request and gives its number.

        Args:
          prompt: token ids [n], or a batch of one row (docs/architecture.md).
          max_new_tokens: at most this many.
          sampling: greedy by default; without a repetition penalty.

        Raises:
          UsageError: nothing to read, more than one row, more tokens than a row's slots or the model's positions,
            image tokens and tiles that do not match, or a repetition penalty.
        """
        batch = (
            prompt
            if isinstance(prompt, Mapping)
            else {"input_ids": np.asarray(prompt, np.int32).reshape(1, -1)}
        )
        sampling = sampling or Sampling()
        self.generator.check(batch, max_new_tokens)
        if sampling.repetition_penalty != 1.0:
            raise UsageError("a repetition penalty is not served; take generate, or leave it out")
        ids = np.asarray(batch["input_ids"], np.int32)
        if len(ids) != 1:
            raise UsageError(f"a request is one prompt, not a batch of {len(ids)}: submit each row alone")
        real = np.asarray(batch.get("attention_mask", np.ones_like(ids)), bool)[0]
        ids = ids[0][real]
        if not len(ids):
            raise UsageError("the prompt is empty")
        if len(ids) + max_new_tokens > self.slots:
            raise UsageError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones are more than the {self.slots} slots of a "
                "row: shorten the prompt, ask for fewer tokens, or serve with more slots"
            )
        number = next(self._numbers)
        asked = make_prompt(self.generator.config, ids, batch)
        self._queue.append(_Request(number, asked, max_new_tokens, sampling))
        return number

    def run(self) -> Iterator[Answer]:
        """Answers everything that is queued; yields answers in the order in which they end."""
        while self.busy:
            yield from (update.answer for update in self.step() if update.answer is not None)

    def step(self) -> list[Update]:
        """Fills free rows from the queue, then takes all rows up to `stride` tokens further.

        A prompt of several chunks is read one chunk a step while others are being answered.

        Returns:
          One `Update` for each request that has new tokens.

        Raises:
          SmoljaxError: the scores are not numbers (broken weights; what was being answered is dropped), or weights were
            replaced before all answers had ended.
        """
        new: dict[int, list[int]] = {}
        ended: list[Update] = []
        if (weights := self.generator.weights) is not self._read_by:
            if self._seated or self._reading:
                raise SmoljaxError(
                    "the weights were replaced while answers were being made: finish them first"
                )
            self._read_by = weights
            self.prefixes.clear()
        while self.waiting and len(self._seated) < self.rows:
            if not self._read_on(new, ended) and self._seated:
                break
        if self._seated:
            self._decode(new, ended)
        running = [Update(request.id, new[request.id]) for request in self._seated.values()]
        return ended + running

    def _read_on(self, new: dict[int, list[int]], ended: list[Update]) -> bool:
        """Reads a chunk of the next prompt; with the last one the request gets a row, and that is True."""
        request, chunks = self._reading or (self._queue[0], None)
        if chunks is None:
            chunks = self._reader.read(self._read_by, self._queue.popleft().prompt)
        self._reading = None
        try:
            next(chunks)
        except StopIteration as end:
            cache, logits, request.cached = end.value
            self._admit(request, cache, logits, new, ended)
            return True
        self._reading = request, chunks
        return False

    def _admit(
        self,
        request: _Request,
        cache: Any,
        logits: Any,
        new: dict[int, list[int]],
        ended: list[Update],
    ) -> None:
        """Gives a request whose prompt was read a row, with its first token."""
        row = next(row for row in range(self.rows) if row not in self._seated)
        self._fit(len(request.prompt) + min(self.stride, request.limit))
        assert self._state is not None
        asked, vocabulary = request.sampling, self.generator.config.text.vocab_size
        told = batch_programs.Request(
            row=np.int32(row),
            limit=np.int32(request.limit),
            temperature=np.float32(asked.temperature),
            top_p=np.float32(asked.top_p),
            top_k=np.int32(min(asked.top_k, vocabulary) or vocabulary),
            seed=np.uint32(asked.seed),
        )
        args = (self._state, cache, logits, told, self._stop_ids)
        sizes = (self.rows, self._state.cache.num_slots, cache.num_slots)
        function = partial(batch_programs.take, self.generator.config)
        state = self._programs.compile("take", sizes, function, args, donate=(0,))(*args)
        self._state = state
        self._seated[row] = request
        self.stats.requests += 1
        self._check(state)
        self._collect(row, [int(np.asarray(state.token)[row])], new, ended)

    def _decode(self, new: dict[int, list[int]], ended: list[Update]) -> None:
        """Some steps of all rows."""
        steps = min(
            self.stride, max(request.limit - len(request.tokens) for request in self._seated.values())
        )
        self._fit(0)
        assert self._state is not None
        args = (self._read_by, self._state, np.int32(steps), np.bool_(self.waiting > 0), self._stop_ids)
        function = partial(batch_programs.decode, self.generator.config, self.stride)
        sizes = (self.rows, self._state.cache.num_slots, self.stride)
        decode = self._programs.compile("decode", sizes, function, args, donate=(1,))
        state, tokens, passes = decode(*args)
        self._state = state
        self._check(state)
        counts, tokens = np.asarray(state.count), np.asarray(tokens)
        self.stats.steps += int(passes)
        for row, request in list(self._seated.items()):
            fresh = int(counts[row]) - len(request.tokens)
            self.stats.row_steps += fresh
            self._collect(row, tokens[row, :fresh].tolist(), new, ended)

    def _collect(self, row: int, tokens: list[int], new: dict[int, list[int]], ended: list[Update]) -> None:
        """Notes a row's new tokens; with the last one its request leaves the row."""
        request = self._seated[row]
        request.tokens += tokens
        fresh = new.setdefault(request.id, [])
        fresh += tokens
        self.stats.new_tokens += len(tokens)
        stopped = request.tokens[-1] in self.generator.stop_ids
        if not stopped and len(request.tokens) < request.limit:
            return
        generation = Generation(request.tokens, "stop" if stopped else "length")
        answer = Answer(request.id, generation, len(request.prompt), request.cached)
        ended.append(Update(request.id, fresh, answer))
        del self._seated[row]

    def _fit(self, joining: int) -> None:
        """Gives the rows as many slots as the next step needs, and takes them back once half would do."""
        config, need = self.generator.config, joining
        for request in self._seated.values():
            ahead = min(self.stride, request.limit - len(request.tokens))
            need = max(need, len(request.prompt) + len(request.tokens) + ahead)
        slots = round_up(min(need, self.slots), SPANS, self.slots)
        if self._state is None:
            function = partial(batch_programs.empty, config, self.rows, slots)
            self._state = self._programs.compile("rows", (self.rows, slots), function, ())()
            return
        has = self._state.cache.num_slots
        if slots > has or 2 * slots <= has:
            function = partial(batch_programs.resize, config, slots)
            args = (self._state,)
            self._state = self._programs.compile("resize", (self.rows, has, slots), function, args)(*args)

    def _check(self, state: batch_programs.Rows) -> None:
        """Raises for scores that are no numbers, after throwing away all that they may have spoilt."""
        sound = np.asarray(state.finite)
        if all(sound[row] for row in self._seated):
            return
        self._state = self._reading = None
        self._seated.clear()
        self.prefixes.clear()
        raise SmoljaxError(
            "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
        )
