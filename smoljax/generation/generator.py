"""Runs the compiled programs on real prompts: buckets, tiles in small batches, streaming, timings."""

import contextvars
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import programs, tiles
from smoljax.generation.buckets import NEW_TOKEN_BUCKETS, PROMPT_BUCKETS, round_up
from smoljax.generation.decoding import BeginAndDecode, Compiled, Decoding, one_by_one
from smoljax.generation.draft import drafting
from smoljax.generation.lookup import looking_up
from smoljax.generation.options import Ahead, Draft, Generation, Sampling, Timings
from smoljax.nn.by_layer import compile_by_layer, has_layers
from smoljax.nn.smolvlm import Weights, picture_params, shapes_of, stored_params


@dataclass
class Generator:
    """Generation with one model's parameters.

    Attributes:
      config: the model.
      params: its parameters, on the device, in the layout of `config.compute.scan_layers`; or a Future of
        them, so that programs are compiled while the weights are read.
      stop_ids: tokens that end an answer (from the checkpoint).
      pad_id: fills rows that ended earlier than others.
      tile_batch: tiles that go through the patch encoder together; bounds its memory. By default 1 on a CPU,
        where one tile fills the machine, and 8 elsewhere.
      kept: how parameters that are still being read are kept; None: in the compute dtype.
      shapes: of `params`, where they are known before these are read; else made from `kept`.
      at_work: told which parts of the parameters the next programs read, for whoever keeps only those in memory; with
        it nothing is compiled beside a program that runs.
    """

    config: SmolVLMConfig
    params: Any
    stop_ids: tuple[int, ...]
    pad_id: int
    tile_batch: int | None = None
    kept: Weights | None = None
    shapes: Any = None
    at_work: Callable[..., None] | None = None
    compiled: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict, repr=False)
    _results: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)

    @property
    def num_compilations(self) -> int:
        """How many programs were compiled (or read from the compilation cache) so far."""
        return len(self.compiled)

    def stream(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stride: int = 1,
        timings: Timings | None = None,
        ahead: Ahead | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields new tokens [B, n] as they come, at most `stride` at a time; `pad_id` for finished rows.

        Args:
          batch: see docs/architecture.md; padding, where there is any, on the left.
          max_new_tokens: at most this many a row.
          sampling: greedy by default.
          stride: tokens between two looks; larger is a little faster.
          timings: filled while the answer is made.
          ahead: how to guess ahead; only greedily, and without a repetition penalty.

        Raises:
          UsageError: nothing to read, more tokens than the model has positions, guesses where tokens are drawn, or a
            draft that does not fit the model.
          SmoljaxError: the scores are not numbers (broken weights).
        """
        self.check(batch, max_new_tokens)
        sampling = sampling or Sampling()
        kind = self._kind(sampling, ahead)
        return self._run(kind, batch, max_new_tokens, sampling, stride, timings or Timings())

    def check(self, batch: Mapping[str, np.ndarray], max_new_tokens: int = 1) -> None:
        """Raises UsageError for a batch that cannot be answered (see `stream`)."""
        ids = np.asarray(batch["input_ids"])
        if ids.size == 0:
            raise UsageError("the prompt is empty")
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        limit = self.config.text.max_positions
        if ids.shape[1] + max_new_tokens > limit:
            raise UsageError(
                f"{ids.shape[1]} prompt tokens and {max_new_tokens} new ones are more than the model's {limit} "
                "positions: shorten the prompt, ask for fewer tokens, or spend fewer on the picture "
                "(--longest-edge, --no-split)"
            )
        if batch.get("pixel_values") is not None:
            tiles.check_places(self.config, batch)

    def _run(
        self,
        kind: Decoding,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int,
        sampling: Sampling,
        stride: int,
        timings: Timings,
    ) -> Iterator[np.ndarray]:
        controls = self._controls(sampling)
        run = self._compile(kind, batch, max_new_tokens, sampling, timings, self.at_work is None)
        padded = self._pad(batch, run, timings)
        started = time.perf_counter()
        weights = self.weights
        if self.at_work is not None:
            self.at_work("embedding", "decoder")
        state = run.prefill(weights, padded, controls)
        tokens = np.asarray(state.tokens)
        timings.prefill_s += time.perf_counter() - started
        _check_finite(state)
        yield tokens[:, :1]
        produced = reached = 1
        if max_new_tokens == 1:
            return
        weights, begin, decode = kind.weights(self.weights), run.begin, run.decode
        assert decode is not None
        # A step may bring more tokens than were asked for: they are there already when they are due.
        while produced < reached or (reached < max_new_tokens and not bool(state.done.all())):
            if produced == reached:
                prompt = None if begin is None else kind.prompt(batch, padded, timings)
                started = time.perf_counter()
                if begin is not None:
                    state, begin = begin(weights, state, prompt, jnp.int32(max_new_tokens)), None
                target = jnp.int32(min(produced + stride, max_new_tokens))
                state = decode(weights, state, target, controls)
                reached, tokens = state.reached(), np.asarray(state.tokens)
                timings.decode_s += time.perf_counter() - started
                timings.decode_steps += reached - produced
                timings.passes, timings.drafted, timings.accepted = state.counted()
                _check_finite(state)
            due = min(reached, produced + stride)
            yield tokens[:, produced:due]
            produced = due

    def generate(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        timings: Timings | None = None,
        ahead: Ahead | None = None,
    ) -> list[Generation]:
        """The whole answer of every row; arguments and errors as for `stream`."""
        return self.collect(
            self.stream(batch, max_new_tokens, sampling, max_new_tokens, timings=timings, ahead=ahead)
        )

    def collect(self, chunks: Iterable[np.ndarray]) -> list[Generation]:
        """Joins what `stream` yields into one `Generation` a row."""
        tokens = np.concatenate(list(chunks), axis=1)
        rows: list[Generation] = []
        for row in tokens.tolist():
            ends = [i for i, token in enumerate(row) if token in self.stop_ids]
            rows.append(Generation(row[: ends[0] + 1], "stop") if ends else Generation(row, "length"))
        return rows

    def compile(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        timings: Timings | None = None,
        ahead: Ahead | None = None,
    ) -> Compiled:
        """Compiles what this batch needs, from shapes alone: a server calls it before the first request.

        BeginAndDecode that are there already are taken as they are. `stream` and `generate` call this first, while
        the weights may still be on their way from the disk.
        """
        sampling = sampling or Sampling()
        kind = self._kind(sampling, ahead)
        return self._compile(kind, batch, max_new_tokens, sampling, timings or Timings())

    def _kind(self, sampling: Sampling, ahead: Ahead | None) -> Decoding:
        """The kind of decoding that is asked for; UsageError where it cannot be had."""
        if ahead is None:
            return one_by_one(self.config, sampling)
        if any(sampling.static):
            raise UsageError("guessing ahead gives the greedy answer: no temperature, no repetition penalty")
        return drafting(self.config, ahead) if isinstance(ahead, Draft) else looking_up(self.config, ahead)

    def _compile(
        self,
        kind: Decoding,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int,
        sampling: Sampling,
        timings: Timings,
        behind: bool = False,
    ) -> Compiled:
        """As `compile`; `behind` leaves what only the second token needs to a thread, beside the first one."""
        B, T = np.shape(batch["input_ids"])
        length = self._bucket(T)
        shapes: dict[str, Any] = {
            "input_ids": jax.ShapeDtypeStruct((B, length), jnp.int32),
            "attention_mask": jax.ShapeDtypeStruct((B, length), jnp.bool_),
        }
        vision = None
        if batch.get("pixel_values") is not None:
            vision = self.vision_program(batch, timings)
            room = tiles.room_for_tiles(self.config, length, batch)
            features = tiles.feature_shape(self.config, B, room)
            shapes["image_features"] = jax.ShapeDtypeStruct(features, self.config.compute.dtype)
            shapes["tile_mask"] = jax.ShapeDtypeStruct((B, room), jnp.bool_)
        room = round_up(max_new_tokens, NEW_TOKEN_BUCKETS, self.config.text.max_positions)
        controls = jax.eval_shape(lambda: self._controls(sampling))
        static = (*sampling.static, room, kind.ahead)
        args = (self.weight_shapes, shapes, controls)
        function = partial(programs.prefill, self.config, *static)
        prefill = self._program("prefill", static, function, args, timings, part="decoder")
        if max_new_tokens == 1:
            return Compiled(vision, prefill)

        def rest() -> BeginAndDecode:
            state, number = self._results[prefill], jax.ShapeDtypeStruct((), jnp.int32)
            weights, begin = kind.weight_shapes(self.weight_shapes), None
            if kind.begin is not None:
                prompt = kind.prompt_shapes(batch, shapes, timings)
                args = (weights, state, prompt, number)
                begin = self._program(f"{kind.name}_begin", kind.static, kind.begin, args, timings, (1,))
                state = self._results[begin]
            args = (weights, state, number, controls)
            return begin, self._program(kind.name, kind.static, kind.decode, args, timings, (1,))

        # A precision is set for this thread alone: another would not know it.
        set_here = jax.config.jax_default_matmul_precision is not None  # pyright: ignore[reportAttributeAccessIssue]
        found: Future[BeginAndDecode] = Future()
        if set_here or not behind:
            found.set_result(rest())
            return Compiled(vision, prefill, found)
        pool = ThreadPoolExecutor(1, "smoljax-compile")
        found = pool.submit(contextvars.copy_context().run, rest)
        pool.shutdown(wait=False)
        return Compiled(vision, prefill, found)

    def encode_images(
        self,
        batch: Mapping[str, np.ndarray],
        num_tiles: int | None = None,
        timings: Timings | None = None,
    ) -> jax.Array:
        """Image tokens [B, num_tiles, Q, D] of the batch's tiles, `tile_batch` tiles at a time.

        Padding tiles are not encoded; their features are zero. `num_tiles` ≥ I leaves room behind.
        """
        timings = timings or Timings()
        encode, size = self.vision_program(batch, timings), self._tiles_at_once
        pixels, real = np.asarray(batch["pixel_values"]), np.asarray(batch["tile_mask"])
        masks = batch.get("pixel_attention_mask")
        shape = tiles.feature_shape(self.config, real.shape[0], num_tiles or real.shape[1])
        places = np.argwhere(real)
        parts = picture_params(self.config, self.weights)
        if self.at_work is not None:
            self.at_work(*parts)
        started = time.perf_counter()
        found: list[jax.Array] = []
        for start in range(0, len(places), size):
            rows, seats = places[start : start + size].T
            chunk = np.zeros((size, *pixels.shape[2:]), np.float32)
            chunk[: len(rows)] = pixels[rows, seats]
            mask = None
            if masks is not None:
                mask = np.ones((size, *pixels.shape[3:]), bool)
                mask[: len(rows)] = np.asarray(masks)[rows, seats]
            found.append(encode(parts, chunk, mask))
        features = tiles.seat(shape, self.config.compute.dtype, places, found)
        timings.vision_s += time.perf_counter() - started
        return features

    @property
    def weights(self) -> Any:
        """The parameters, waited for if they are still being read."""
        if isinstance(self.params, Future):
            self.params = self.params.result()
        return self.params

    def replace_params(self, params: Any) -> None:
        """Other weights of the same shapes; programs are kept."""
        self.params, self.shapes = params, None
        self.__dict__.pop("weight_shapes", None)

    @cached_property
    def weight_shapes(self) -> Any:
        """The parameters' shapes and dtypes, known before the weights are there."""
        if self.shapes is not None:
            return self.shapes
        if not isinstance(self.params, Future):
            return shapes_of(self.params)
        return stored_params(self.config, self.kept or self.config.compute.dtype)

    def by_layer(self, params: Any, part: str) -> bool:
        """Whether what runs the part's layers once an answer is made of one layer's program."""
        return jax.default_backend() == "cpu" and has_layers(params, part)

    @property
    def _tiles_at_once(self) -> int:
        return self.tile_batch or (1 if jax.default_backend() == "cpu" else 8)

    def _bucket(self, length: int) -> int:
        return round_up(length, PROMPT_BUCKETS, self.config.text.max_positions)

    def _controls(self, sampling: Sampling) -> programs.Controls:
        return programs.make_controls(self.config, sampling, self.stop_ids, self.pad_id)

    def _pad(self, batch: Mapping[str, np.ndarray], run: Compiled, timings: Timings) -> dict[str, jax.Array]:
        """Pads prompts on the left to their bucket and lays out the image features for it."""
        ids = np.asarray(batch["input_ids"], np.int32)
        mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), bool)
        extra = self._bucket(ids.shape[1]) - ids.shape[1]
        padded = {
            "input_ids": jnp.asarray(np.pad(ids, ((0, 0), (extra, 0)), constant_values=self.pad_id)),
            "attention_mask": jnp.asarray(np.pad(mask, ((0, 0), (extra, 0)))),
        }
        if run.vision is not None:
            real = np.asarray(batch["tile_mask"])
            room = tiles.room_for_tiles(self.config, extra + ids.shape[1], batch)
            padded["image_features"] = self.encode_images(batch, room, timings)
            padded["tile_mask"] = jnp.asarray(np.pad(real, ((0, 0), (0, room - real.shape[1]))))
        return padded

    def vision_program(self, batch: Mapping[str, np.ndarray], timings: Timings) -> Callable[..., Any]:
        """The program that encodes a batch's tiles, `tile_batch` at a time, compiled at most once."""
        size, tile = self._tiles_at_once, np.shape(batch["pixel_values"])[2:]
        mask = None
        if batch.get("pixel_attention_mask") is not None:
            mask = jax.ShapeDtypeStruct((size, *tile[1:]), jnp.bool_)
        parts = picture_params(self.config, self.weight_shapes)
        pixels = jax.ShapeDtypeStruct((size, *tile), jnp.float32)
        function = partial(programs.encode_tiles, self.config)
        return self._program("vision", (), function, (parts, pixels, mask), timings, part="vision")

    def _program(
        self,
        name: str,
        static: tuple[Any, ...],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        timings: Timings,
        donate: tuple[int, ...] = (),
        part: str = "",
    ) -> Callable[..., Any]:
        """The program for these shapes, compiled at most once; `_results` keeps the shapes of what it gives.

        One that runs once an answer names the `part` whose layers it runs.
        """

        def make() -> Callable[..., Any]:
            started = time.perf_counter()
            if part and self.by_layer(args[0], part):
                program = compile_by_layer(function, part, *args)
                found = program.result
            else:
                lowered = jax.jit(function, donate_argnums=donate).lower(*args)
                program, found = lowered.compile(), lowered.out_info
            self._results[program] = shapes_of(found)
            timings.compile_s += time.perf_counter() - started
            return program

        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(args[1:]))
        return self.keep((name, static, shapes), make)

    def keep(self, key: tuple[Any, ...], make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The program of this name, made at most once for each precision of products."""
        key = (*key, jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
        if key not in self.compiled:
            self.compiled[key] = make()
        return self.compiled[key]


def _check_finite(state: Any) -> None:
    if not bool(state.finite):
        raise SmoljaxError(
            "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
        )
