"""Runs the compiled programs on real prompts: buckets, tiles in small batches, streaming, timings."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import programs
from smoljax.generation.buckets import NEW_TOKEN_BUCKETS, PROMPT_BUCKETS, round_up


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


@dataclass
class Timings:
    """Wall seconds of one generation; `compile_s` is 0 once the bucket's programs are there."""

    compile_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens a second of one row after its first token; 0 where there was only one."""
        return self.decode_steps / self.decode_s if self.decode_s > 0 else 0.0


@dataclass
class Generation:
    """One row's answer: token ids without padding (a final stop id included) and why it ended."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass
class Generator:
    """Generation with one model's parameters.

    Attributes:
      config: the model.
      params: its parameters, on the device, in the layout of `config.compute.scan_layers`.
      stop_ids: tokens that end an answer (from the checkpoint).
      pad_id: fills rows that ended earlier than others.
      tile_batch: tiles that go through the patch encoder together; bounds its memory. By default 1 on a CPU,
        where one tile fills the machine, and 8 elsewhere.
    """

    config: SmolVLMConfig
    params: Any
    stop_ids: tuple[int, ...]
    pad_id: int
    tile_batch: int | None = None
    compiled: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict, repr=False)

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
    ) -> Iterator[np.ndarray]:
        """Yields new tokens [B, n] as they come, at most `stride` at a time; `pad_id` for finished rows.

        Args:
          batch: see docs/architecture.md; padding, where there is any, on the left.
          max_new_tokens: at most this many a row.
          sampling: greedy by default.
          stride: tokens between two looks; larger is a little faster.
          timings: filled while the answer is made.

        Raises:
          UsageError: nothing to read, or more tokens than the model has positions.
          SmoljaxError: the scores are not numbers (broken weights).
        """
        sampling, timings = sampling or Sampling(), timings if timings is not None else Timings()
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
        static = (sampling.temperature > 0, sampling.repetition_penalty != 1.0)
        controls = programs.Controls(
            temperature=jnp.float32(sampling.temperature),
            top_k=jnp.int32(sampling.top_k or self.config.text.vocab_size),
            top_p=jnp.float32(sampling.top_p),
            repetition_penalty=jnp.float32(sampling.repetition_penalty),
            stop_ids=jnp.asarray(self.stop_ids, jnp.int32),
            pad_id=jnp.int32(self.pad_id),
            key=jax.random.key(sampling.seed),
        )
        padded = self._pad(batch, timings)
        room = round_up(max_new_tokens, NEW_TOKEN_BUCKETS)
        args = (self.params, padded, controls)
        first = self._compile(
            "prefill", (*static, room), partial(programs.prefill, self.config, *static, room), args, timings
        )
        started = time.perf_counter()
        state = first(*args)
        tokens = np.asarray(state.tokens[:, :1])
        timings.prefill_s += time.perf_counter() - started
        _check_finite(state)
        yield tokens
        produced = 1
        more: Callable[..., Any] | None = None
        while produced < max_new_tokens and not bool(state.done.all()):
            target = jnp.int32(min(produced + stride, max_new_tokens))
            args = (self.params, state, target, controls)
            if more is None:
                function = partial(programs.decode, self.config, *static)
                more = self._compile("decode", static, function, args, timings, donate=(1,))
            started = time.perf_counter()
            state = more(*args)
            reached = int(state.step)
            tokens = np.asarray(state.tokens[:, produced:reached])
            timings.decode_s += time.perf_counter() - started
            timings.decode_steps += reached - produced
            produced = reached
            _check_finite(state)
            yield tokens

    def generate(
        self,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        timings: Timings | None = None,
    ) -> list[Generation]:
        """The whole answer of every row; arguments and errors as for `stream`."""
        return self.collect(
            self.stream(batch, max_new_tokens, sampling, stride=max_new_tokens, timings=timings)
        )

    def collect(self, chunks: Iterable[np.ndarray]) -> list[Generation]:
        """Joins what `stream` yields into one `Generation` a row."""
        tokens = np.concatenate(list(chunks), axis=1)
        rows: list[Generation] = []
        for row in tokens.tolist():
            ends = [i for i, token in enumerate(row) if token in self.stop_ids]
            rows.append(Generation(row[: ends[0] + 1], "stop") if ends else Generation(row, "length"))
        return rows

    def encode_images(
        self, batch: Mapping[str, np.ndarray], num_tiles: int | None = None, timings: Timings | None = None
    ) -> jax.Array:
        """Image tokens [B, num_tiles, Q, D] of the batch's tiles, `tile_batch` tiles at a time.

        Padding tiles are not encoded; their features are zero. `num_tiles` ≥ I leaves room behind.
        """
        timings = timings if timings is not None else Timings()
        pixels, real = np.asarray(batch["pixel_values"]), np.asarray(batch["tile_mask"])
        masks = batch.get("pixel_attention_mask")
        size = self.tile_batch or (1 if jax.default_backend() == "cpu" else 8)
        shape = (
            real.shape[0],
            num_tiles or real.shape[1],
            self.config.image_seq_len,
            self.config.text.hidden_size,
        )
        features = np.zeros(shape, jnp.dtype(self.config.compute.dtype))
        places = np.argwhere(real)
        parts = {name: self.params[name] for name in ("vision", "connector")}
        for start in range(0, len(places), size):
            rows, tiles = places[start : start + size].T
            chunk = np.zeros((size, *pixels.shape[2:]), np.float32)
            chunk[: len(rows)] = pixels[rows, tiles]
            mask = None
            if masks is not None:
                mask = np.ones((size, *pixels.shape[3:]), bool)
                mask[: len(rows)] = np.asarray(masks)[rows, tiles]
            args = (parts, chunk, mask)
            encode = self._compile("vision", (), partial(programs.encode_tiles, self.config), args, timings)
            started = time.perf_counter()
            features[rows, tiles] = np.asarray(encode(*args))[: len(rows)]
            timings.vision_s += time.perf_counter() - started
        return jnp.asarray(features)

    def _pad(self, batch: Mapping[str, np.ndarray], timings: Timings) -> dict[str, jax.Array]:
        """Pads prompts on the left to their bucket and lays out the image features for it."""
        ids = np.asarray(batch["input_ids"], np.int32)
        mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), bool)
        length = min(round_up(ids.shape[1], PROMPT_BUCKETS), self.config.text.max_positions)
        extra = length - ids.shape[1]
        padded = {
            "input_ids": jnp.asarray(np.pad(ids, ((0, 0), (extra, 0)), constant_values=self.pad_id)),
            "attention_mask": jnp.asarray(np.pad(mask, ((0, 0), (extra, 0)))),
        }
        if batch.get("pixel_values") is not None:
            Q = self.config.image_seq_len
            counts = (ids == self.config.image_token_id).sum(axis=-1)
            real = np.asarray(batch["tile_mask"])
            for row, (places, tiles) in enumerate(zip(counts, real.sum(axis=-1), strict=True)):
                if places != tiles * Q:
                    raise UsageError(
                        f"row {row} has {places} <image> tokens for {tiles} tiles of {Q}: the numbers must match"
                    )
            room = max(-(-length // Q), real.shape[1])
            padded["image_features"] = self.encode_images(batch, room, timings)
            padded["tile_mask"] = jnp.asarray(np.pad(real, ((0, 0), (0, room - real.shape[1]))))
        return padded

    def _compile(
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
        key = (name, static, shapes)
        if key not in self.compiled:
            started = time.perf_counter()
            try:
                self.compiled[key] = jax.jit(function, donate_argnums=donate).lower(*args).compile()
            except (TypeError, ValueError) as error:
                raise SmoljaxError(f"the model's parameters do not fit its config: {error}") from error
            timings.compile_s += time.perf_counter() - started
        return self.compiled[key]


def _check_finite(state: programs.DecodeState) -> None:
    if not bool(state.finite):
        raise SmoljaxError(
            "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
        )
