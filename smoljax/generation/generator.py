"""Runs the compiled programs on real prompts: buckets, tiles in small batches, streaming, timings."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import lookup as guessing
from smoljax.generation import programs
from smoljax.generation.buckets import NEW_TOKEN_BUCKETS, PROMPT_BUCKETS, round_up
from smoljax.generation.options import Generation, Lookup, Sampling, Timings
from smoljax.nn.smolvlm import Weights, picture_params, stored_params


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
    """

    config: SmolVLMConfig
    params: Any
    stop_ids: tuple[int, ...]
    pad_id: int
    tile_batch: int | None = None
    kept: Weights | None = None
    compiled: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict, repr=False)
    _states: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)

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
        lookup: Lookup | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields new tokens [B, n] as they come, at most `stride` at a time; `pad_id` for finished rows.

        Args:
          batch: see docs/architecture.md; padding, where there is any, on the left.
          max_new_tokens: at most this many a row.
          sampling: greedy by default.
          stride: tokens between two looks; larger is a little faster.
          timings: filled while the answer is made.
          lookup: guess ahead; only greedily, and without a repetition penalty.

        Raises:
          UsageError: nothing to read, more tokens than the model has positions, or guesses where tokens are drawn.
          SmoljaxError: the scores are not numbers (broken weights).
        """
        self.check(batch, max_new_tokens)
        sampling = sampling or Sampling()
        if lookup is not None and (sampling.temperature > 0 or sampling.repetition_penalty != 1.0):
            raise UsageError("guessing ahead gives the greedy answer: no temperature, no repetition penalty")
        return self._run(batch, max_new_tokens, sampling, stride, timings or Timings(), lookup)

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
            self._check_places(batch)

    def _run(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int,
        sampling: Sampling,
        stride: int,
        timings: Timings,
        lookup: Lookup | None,
    ) -> Iterator[np.ndarray]:
        controls = self._controls(sampling)
        run = self.compile(batch, max_new_tokens, sampling, timings, lookup)
        padded = self._pad(batch, run, timings)
        started = time.perf_counter()
        state = run.prefill(self.weights, padded, controls)
        tokens = np.asarray(state.tokens)[:, :1]
        timings.prefill_s += time.perf_counter() - started
        _check_finite(state)
        yield tokens
        produced = 1
        if run.begin is not None:
            state = run.begin(state, {key: padded[key] for key in ("input_ids", "attention_mask")})
        while produced < max_new_tokens and not bool(state.done.all()):
            target = jnp.int32(min(produced + stride, max_new_tokens))
            assert run.decode is not None
            started = time.perf_counter()
            state = run.decode(self.weights, state, target, controls)
            reached = _reached(state)
            tokens = np.asarray(state.tokens)[:, produced:reached]
            timings.decode_s += time.perf_counter() - started
            timings.decode_steps += reached - produced
            timings.passes = int(getattr(state, "passes", timings.decode_steps))
            produced = reached
            _check_finite(state)
            yield tokens

    def generate(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        timings: Timings | None = None,
        lookup: Lookup | None = None,
    ) -> list[Generation]:
        """The whole answer of every row; arguments and errors as for `stream`."""
        return self.collect(
            self.stream(
                batch, max_new_tokens, sampling, stride=max_new_tokens, timings=timings, lookup=lookup
            )
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
        lookup: Lookup | None = None,
    ) -> "Compiled":
        """Compiles what this batch needs, from shapes alone: a server calls it before the first request.

        Programs that are there already are taken as they are. `stream` and `generate` call this first, while
        the weights may still be on their way from the disk.
        """
        sampling, timings = sampling or Sampling(), timings or Timings()
        static = (sampling.temperature > 0, sampling.repetition_penalty != 1.0)
        B, T = np.shape(batch["input_ids"])
        length = self._bucket(T)
        shapes: dict[str, Any] = {
            "input_ids": jax.ShapeDtypeStruct((B, length), jnp.int32),
            "attention_mask": jax.ShapeDtypeStruct((B, length), jnp.bool_),
        }
        vision = None
        if batch.get("pixel_values") is not None:
            vision = self._vision_program(batch, timings)
            room = self._feature_room(length, batch)
            shapes["image_features"] = jax.ShapeDtypeStruct(
                self._feature_shape(B, room), self.config.compute.dtype
            )
            shapes["tile_mask"] = jax.ShapeDtypeStruct((B, room), jnp.bool_)
        room = round_up(max_new_tokens, NEW_TOKEN_BUCKETS, self.config.text.max_positions)
        controls = jax.eval_shape(lambda: self._controls(sampling))
        ahead = 0 if lookup is None else lookup.guesses
        function = partial(programs.prefill, self.config, *static, room, ahead)
        args = (self.weight_shapes, shapes, controls)
        prefill = self._program("prefill", (*static, room, ahead), function, args, timings)
        begin = decode = None
        if max_new_tokens > 1:
            # Its state is the prefill's result; tracing that anew for every request would cost as much as a token.
            if prefill not in self._states:
                self._states[prefill] = jax.eval_shape(function, *args)
            state = self._states[prefill]
            function, static, name = partial(programs.decode, self.config, *static), static, "decode"
            if lookup is not None:
                prompt = {key: shapes[key] for key in ("input_ids", "attention_mask")}
                begin = self._program(
                    "begin", (room, ahead), guessing.start, (state, prompt), timings, donate=(0,)
                )
                state = jax.eval_shape(guessing.start, state, prompt)
                static, name = (lookup.guesses, lookup.ngram), "lookup"
                function = partial(guessing.decode, self.config, *static)
            args = (self.weight_shapes, state, jax.ShapeDtypeStruct((), jnp.int32), controls)
            decode = self._program(name, static, function, args, timings, donate=(1,))
        return Compiled(vision, prefill, decode, begin)

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
        encode, size = self._vision_program(batch, timings), self._tiles_at_once
        pixels, real = np.asarray(batch["pixel_values"]), np.asarray(batch["tile_mask"])
        masks = batch.get("pixel_attention_mask")
        shape = self._feature_shape(real.shape[0], num_tiles or real.shape[1])
        places = np.argwhere(real)
        parts = picture_params(self.config, self.weights)
        started = time.perf_counter()
        found: list[jax.Array] = []
        for start in range(0, len(places), size):
            rows, tiles = places[start : start + size].T
            chunk = np.zeros((size, *pixels.shape[2:]), np.float32)
            chunk[: len(rows)] = pixels[rows, tiles]
            mask = None
            if masks is not None:
                mask = np.ones((size, *pixels.shape[3:]), bool)
                mask[: len(rows)] = np.asarray(masks)[rows, tiles]
            found.append(encode(parts, chunk, mask))
        features = self._seat(shape, places, found)
        timings.vision_s += time.perf_counter() - started
        return features

    def _seat(self, shape: tuple[int, ...], places: np.ndarray, found: list[jax.Array]) -> jax.Array:
        """Lays encoded tiles into [B, num_tiles, Q, D], which is zero elsewhere."""
        if jax.default_backend() == "cpu":  # host memory is device memory: plain copies, nothing to compile
            features = np.zeros(shape, jnp.dtype(self.config.compute.dtype))
            if found:
                features[places[:, 0], places[:, 1]] = np.concatenate([np.asarray(x) for x in found])[
                    : len(places)
                ]
            return jnp.asarray(features)
        features = jnp.zeros(shape, self.config.compute.dtype)
        return (
            features.at[places[:, 0], places[:, 1]].set(jnp.concatenate(found)[: len(places)])
            if found
            else features
        )

    @property
    def weights(self) -> Any:
        """The parameters, waited for if they are still being read."""
        if isinstance(self.params, Future):
            self.params = self.params.result()
        return self.params

    def replace_params(self, params: Any) -> None:
        """Other weights of the same shapes; programs are kept."""
        self.params = params
        self.__dict__.pop("weight_shapes", None)

    @cached_property
    def weight_shapes(self) -> Any:
        """The parameters' shapes and dtypes, known before the weights are there."""
        if not isinstance(self.params, Future):
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        return stored_params(self.config, self.kept or self.config.compute.dtype)

    @property
    def _tiles_at_once(self) -> int:
        return self.tile_batch or (1 if jax.default_backend() == "cpu" else 8)

    def _bucket(self, length: int) -> int:
        return round_up(length, PROMPT_BUCKETS, self.config.text.max_positions)

    def _feature_room(self, length: int, batch: Mapping[str, np.ndarray]) -> int:
        """Tiles that a prompt of `length` tokens can hold: so the prompt's bucket alone decides the shapes."""
        return max(-(-length // self.config.image_seq_len), np.shape(batch["tile_mask"])[1])

    def _feature_shape(self, rows: int, tiles: int) -> tuple[int, int, int, int]:
        return (rows, tiles, self.config.image_seq_len, self.config.text.hidden_size)

    def _controls(self, sampling: Sampling) -> programs.Controls:
        return programs.make_controls(self.config, sampling, self.stop_ids, self.pad_id)

    def _pad(
        self, batch: Mapping[str, np.ndarray], run: "Compiled", timings: Timings
    ) -> dict[str, jax.Array]:
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
            room = self._feature_room(extra + ids.shape[1], batch)
            padded["image_features"] = self.encode_images(batch, room, timings)
            padded["tile_mask"] = jnp.asarray(np.pad(real, ((0, 0), (0, room - real.shape[1]))))
        return padded

    def _check_places(self, batch: Mapping[str, np.ndarray]) -> None:
        Q = self.config.image_seq_len
        counts = (np.asarray(batch["input_ids"]) == self.config.image_token_id).sum(axis=-1)
        for row, (places, tiles) in enumerate(zip(counts, batch["tile_mask"].sum(axis=-1), strict=True)):
            if places != tiles * Q:
                raise UsageError(
                    f"row {row} has {places} <image> tokens for {tiles} tiles of {Q}: the numbers must match"
                )

    def _vision_program(self, batch: Mapping[str, np.ndarray], timings: Timings) -> Callable[..., Any]:
        size, tile = self._tiles_at_once, np.shape(batch["pixel_values"])[2:]
        mask = None
        if batch.get("pixel_attention_mask") is not None:
            mask = jax.ShapeDtypeStruct((size, *tile[1:]), jnp.bool_)
        args = (
            picture_params(self.config, self.weight_shapes),
            jax.ShapeDtypeStruct((size, *tile), jnp.float32),
            mask,
        )
        return self._program("vision", (), partial(programs.encode_tiles, self.config), args, timings)

    def _program(
        self,
        name: str,
        static: tuple[Any, ...],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        timings: Timings,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """The program for these shapes, compiled at most once."""
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(args[1:]))
        key = (name, static, shapes, jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
        if key not in self.compiled:
            started = time.perf_counter()
            self.compiled[key] = jax.jit(function, donate_argnums=donate).lower(*args).compile()
            timings.compile_s += time.perf_counter() - started
        return self.compiled[key]


@dataclass(frozen=True)
class Compiled:
    """The programs of one batch: `vision` only with pictures, `decode` only for more than one token.

    `begin` takes a prefill's state to what guessing ahead carries.
    """

    vision: Callable[..., Any] | None
    prefill: Callable[..., Any]
    decode: Callable[..., Any] | None
    begin: Callable[..., Any] | None = None


def _reached(state: Any) -> int:
    """How many tokens every running row has; where none runs, what the longest has."""
    if isinstance(state, programs.DecodeState):
        return int(state.step)
    counts, done = np.asarray(state.counts), np.asarray(state.done)
    return int(counts.max() if done.all() else counts[~done].min())


def _check_finite(state: Any) -> None:
    if not bool(state.finite):
        raise SmoljaxError(
            "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
        )
