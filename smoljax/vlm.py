"""A loaded model: config, module, parameters and processor together, with generation on top."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import jax
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.generator import Generator
from smoljax.generation.options import Ahead, Draft, Generation, Lookup, Sampling, Timings
from smoljax.generation.serving import Engine
from smoljax.nn.packed import pack, unpack
from smoljax.nn.smolvlm import SmolVLM, Weights, forward
from smoljax.processing.processor import Batch, Processor, Sample
from smoljax.serving import Serving


@dataclass(repr=False)
class VLM:
    """What `smoljax.load` returns.

    Attributes:
      config: the architecture, and how it is executed.
      weights: the parameters laid out for answering (`smoljax.nn.packed.pack`), or a Future of them while they are
        still being read; `packed` waits for them, `params` are the plain ones.
      processor: pictures, prompts and tokens; None where the checkpoint has no tokenizer.
      name: what it was loaded by.
      notes: what the reader of the checkpoint had to infer or drop.
      untrained: the weights are known to be random (`smoljax init`).
      load_s: wall seconds that loading took, beside whatever else was done meanwhile.
      tile_batch: see `Generator`.
      kept: how the weights are kept.
      shapes: of `weights`, where they are known before these are read.
      at_work: keeps the weights of the parts that it is told in memory, and no others (`load(lean=True)`); or None.
    """

    config: SmolVLMConfig
    weights: dict[str, Any] | Future[dict[str, Any]]
    processor: Processor | None
    name: str = ""
    notes: tuple[str, ...] = ()
    untrained: bool = False
    load_s: float = 0.0
    tile_batch: int | None = None
    kept: Weights = "float32"
    shapes: dict[str, Any] | None = None
    at_work: Callable[..., None] | None = None
    _plain: dict[str, Any] | None = field(default=None, init=False)

    def __repr__(self) -> str:
        kind = (
            "text only" if self.config.vision is None else f"{self.config.image_seq_len} image tokens a tile"
        )
        state = ", untrained" if self.untrained else ""
        kept = "" if self.kept == self.config.compute.dtype else f", weights in {self.kept}"
        compute = self.config.compute
        kept += "" if compute.cache_kind == compute.dtype else f", cache in {compute.cache_kind}"
        return f"VLM({self.name!r}: {self.config.model_type}, {kind}, {compute.dtype}{kept}{state})"

    @property
    def packed(self) -> dict[str, Any]:
        """The parameters laid out for answering, waited for if they are still being read.

        Raises:
          SmoljaxError: they turn out to be damaged.
        """
        if isinstance(self.weights, Future):
            self.weights = self.weights.result()
        return self.weights

    @property
    def params(self) -> dict[str, Any]:
        """The parameters: a plain nested dict of jax arrays (paths: docs/architecture.md), as `module` takes them.

        What is packed for answering is copied out at first use, about a quarter of the weights. Quantised weights stay
        so (`smoljax.nn.quantised.quantise`) and want `smoljax.nn.smolvlm.apply`.

        Raises:
          SmoljaxError: they turn out to be damaged.
        """
        if self._plain is None:
            self._plain = unpack(self.config.text, self.packed)
        return self._plain

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        """Other weights of the same shapes; compiled programs are kept (`Generator.replace_params`)."""
        self.weights, self.shapes, self._plain = pack(params), None, None
        self.generator.replace_params(self.weights)

    @property
    def module(self) -> SmolVLM:
        """The Linen module: `vlm.module.apply({"params": vlm.params}, batch)`."""
        return SmolVLM(self.config)

    @cached_property
    def generator(self) -> Generator:
        """The compiled programs, made on first use and kept."""
        processor = self.require_processor()
        found = (self.weights, processor.stop_ids, processor.pad_id, self.tile_batch, self.kept)
        return Generator(self.config, *found, self.shapes, self.at_work)

    def require_processor(self) -> Processor:
        """The processor; raises SmoljaxError where the checkpoint came without a tokenizer."""
        if self.processor is None:
            raise SmoljaxError(
                f"{self.name}: has no tokenizer.json, so it takes and gives no text; copy it from the checkpoint's "
                "repository, or call vlm.module with token ids"
            )
        return self.processor

    def prepare(self, **sample: Any) -> Batch:
        """The arrays for one sample; arguments as for `Processor.__call__`."""
        return self.require_processor()(**sample)

    @overload
    def generate(
        self,
        prompt: str | None = ...,
        images: Any = ...,
        *,
        stream: Literal[False] = ...,
        max_new_tokens: int = ...,
        sampling: Sampling | None = ...,
        lookup: Lookup | None = ...,
        draft: Draft | None = ...,
        **sample: Any,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | None = ...,
        images: Any = ...,
        *,
        stream: Literal[True],
        max_new_tokens: int = ...,
        sampling: Sampling | None = ...,
        lookup: Lookup | None = ...,
        draft: Draft | None = ...,
        **sample: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str | None = None,
        images: Any = None,
        *,
        stream: bool = False,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        lookup: Lookup | None = None,
        draft: Draft | None = None,
        **sample: Any,
    ) -> str | Iterator[str]:
        """Answers one prompt.

        Args:
          prompt: what to ask; or give `messages=` or `text=` (see `Processor.__call__`).
          images: a picture or a list of them: paths, PIL images or uint8 arrays [h, w, 3].
          stream: return an iterator over pieces of the answer as they come.
          max_new_tokens: the longest answer.
          sampling: greedy by default; `Sampling(temperature=0.7, seed=1)` draws.
          lookup: `Lookup()` guesses ahead from prompt and answer: faster where they repeat, the same answer.
          draft: `Draft(layers=8)` or `Draft(model=other)` guesses ahead by a smaller model: the same answer, in fewer
            passes through this one. Not together with `lookup`.
          **sample: `videos`, `longest_edge`, `split`, … of `Processor.__call__`.

        Raises:
          UsageError: the call does not fit together (no prompt, more `<image>` than pictures, too long, another draft).
          SmoljaxError: a picture is broken.
        """
        ahead = _ahead(lookup, draft)
        batch = self.prepare(prompt=prompt, images=images, **sample)
        if stream:
            self.generator.check(batch.arrays(), max_new_tokens)
            return self.stream_text(batch, max_new_tokens, sampling, ahead=ahead)
        found = self.generator.generate(batch.arrays(), max_new_tokens, sampling, ahead=ahead)
        return self.text_of(found[0])

    def generate_batch(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        lookup: Lookup | None = None,
        draft: Draft | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers several samples at once, left-padded; a greedy answer is the one the row would get alone.

        With a temperature every row draws with a key of its own, made from the seed and its place in the batch.

        `lookup` and `draft` are as for `generate`; `options` are `longest_edge`, `split` and `video_style` of
        `Processor.batch`.
        """
        batch = self.require_processor().batch(samples, **options)
        rows = self.generator.generate(batch.arrays(), max_new_tokens, sampling, ahead=_ahead(lookup, draft))
        return [self.text_of(row) for row in rows]

    def serve(self, rows: int = 8, slots: int = 2048, **options: Any) -> Serving:
        """Answers many requests, each with its own length, limit and sampling, as rows of one batch.

        `rows` are answered at the same time, each of at most `slots` tokens; `options` are `stride`, `chunk` and
        `prefix_bytes` of `smoljax.generation.serving.Engine`, which lists the errors.
        """
        return Serving(Engine(self.generator, rows, slots, **options), self.require_processor())

    def stream_text(
        self,
        batch: Batch,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        timings: Timings | None = None,
        collected: list[np.ndarray] | None = None,
        ahead: Ahead | None = None,
    ) -> Iterator[str]:
        """Yields pieces of text of a one-row batch; appends the raw token chunks to `collected`."""
        decoder = self.require_processor().tokenizer.incremental()
        chunks = self.generator.stream(batch.arrays(), max_new_tokens, sampling, timings=timings, ahead=ahead)
        for chunk in chunks:
            if collected is not None:
                collected.append(chunk)
            for token in chunk[0].tolist():
                if token not in self.generator.stop_ids and (piece := decoder.push(token)):
                    yield piece
        if rest := decoder.finish():
            yield rest

    def text_of(self, generation: Generation) -> str:
        """The text of generated ids, without the stop token."""
        ids = [token for token in generation.token_ids if token not in self.generator.stop_ids]
        return self.require_processor().tokenizer.decode(ids)

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Teacher-forced scores [B, T, V] float32 of a processed prompt (`Batch.arrays()`)."""
        self.generator.check(arrays)
        inputs: dict[str, Any] = {
            key: arrays[key] for key in ("input_ids", "attention_mask") if key in arrays
        }
        if "pixel_values" in arrays:
            inputs["image_features"] = self.generator.encode_images(arrays)
            inputs["tile_mask"] = arrays["tile_mask"]
        return np.asarray(self._scores(self.packed, inputs))

    @cached_property
    def _scores(self) -> Callable[[Any, Any], jax.Array]:
        return jax.jit(lambda params, inputs: forward(self.config, params, inputs).logits)


def _ahead(lookup: Lookup | None, draft: Draft | None) -> Ahead | None:
    """The one way of guessing that is asked for; UsageError for two."""
    if lookup is not None and draft is not None:
        raise UsageError("guesses come from a lookup or from a draft: give one of them")
    return lookup or draft
