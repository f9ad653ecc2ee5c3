"""Prompts and pictures in, texts out, many at a time: what `VLM.serve` returns."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from smoljax.generation.options import Sampling
from smoljax.generation.reading import Stats
from smoljax.generation.serving import Answer, Engine
from smoljax.processing.processor import Processor


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
      id: what `submit` gave.
      text: without the stop token.
      token_ids: with it.
      finish_reason: "stop" at a stop token, "length" at the limit.
      prompt_tokens: of the prompt; `cached_tokens` of them had been read before.
    """

    id: int
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int


class Serving:
    """A `smoljax.generation.serving.Engine` with a processor: the arguments of `VLM.generate`, request by request."""

    def __init__(self, engine: Engine, processor: Processor) -> None:
        self.engine, self.processor = engine, processor

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        return self.engine.stats

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or being answered."""
        return self.engine.busy

    @property
    def hungry(self) -> bool:
        """Whether fewer requests are waiting than there are rows: more keep them busy, most only take memory."""
        return self.engine.waiting < self.engine.rows

    def submit(
        self,
        prompt: str | None = None,
        images: Any = None,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        **sample: Any,
    ) -> int:
        """Queues a request and gives its number; arguments as for `VLM.generate`.

        Raises:
          UsageError: the call does not fit together, or the request does not fit a row (`Engine.submit`).
          SmoljaxError: a picture is broken.
        """
        batch = self.processor(prompt=prompt, images=images, **sample)
        return self.engine.submit(batch.arrays(), max_new_tokens, sampling)

    def step(self) -> list[Reply]:
        """Goes on for some tokens (`Engine.step`); gives the answers that have ended."""
        return [self._reply(update.answer) for update in self.engine.step() if update.answer is not None]

    def run(self) -> Iterator[Reply]:
        """Answers all that was submitted; yields answers in the order in which they end."""
        while self.busy:
            yield from self.step()

    def generate(self, samples: Iterable[Mapping[str, Any]], **common: Any) -> list[str]:
        """The answers to some samples, in order.

        Args:
          samples: arguments of `submit` by name; prepared a few at a time, so that there may be many.
          **common: arguments for all.
        """
        order: list[int] = []
        texts: dict[int, str] = {}
        for sample in samples:
            order.append(self.submit(**{**common, **sample}))
            while not self.hungry:
                texts.update((reply.id, reply.text) for reply in self.step())
        texts.update((reply.id, reply.text) for reply in self.run())
        return [texts[number] for number in order]

    def _reply(self, answer: Answer) -> Reply:
        ids = answer.generation.token_ids
        words = [token for token in ids if token not in self.engine.generator.stop_ids]
        return Reply(
            id=answer.id,
            text=self.processor.tokenizer.decode(words),
            token_ids=ids,
            finish_reason=answer.generation.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
        )
