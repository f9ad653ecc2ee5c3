"""Answers many questions about many pictures, each picture read once, in few static shapes.

A prompt falls into its trunk (everything up to and with the last picture's tokens) and its rest (the question). The
trunks of some pictures are run through the model together; then the questions about them, sorted by length, continue
from their picture's keys and values. An answer is the one that `VLM.generate` gives for the same prompt.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smoljax.errors import SmoljaxError, UsageError
from smoljax.evaluation import programs
from smoljax.evaluation.samples import Item
from smoljax.generation.generator import Generator
from smoljax.generation.options import Generation
from smoljax.nn.cache import KVCache, token_bytes
from smoljax.processing import chat
from smoljax.processing.processor import Processor
from smoljax.processing.tokenizer import IMAGE_TOKEN
from smoljax.vlm import VLM

_TRUNK_STEP, _REST_STEP = 16, 8  # padded lengths are multiples of these
_CACHE_BYTES = 256 * 2**20  # for the keys and values of one batch
_MOST_ROWS = 128
_PATCHES_AT_ONCE = 4096


@dataclass(frozen=True)
class _Trunk:
    """The beginning that some of an item's questions share.

    Attributes:
      item: number of the item within its chunk.
      ids: [n] int32, empty without pictures.
      pixels: [I, 3, h, w] float32, or None.
      questions: numbers of the item's questions.
      rests: the token ids of each after the trunk.
    """

    item: int
    ids: np.ndarray
    pixels: np.ndarray | None
    questions: list[int]
    rests: list[list[int]]


@dataclass(frozen=True)
class _Row:
    """One question: where its answer goes, its trunk, its tokens, and how long an answer is expected."""

    item: int
    question: int
    trunk: int
    rest: list[int]
    expected: int


class Answerer:
    """Greedy answers of one model.

    Attributes:
      vlm: the model.
      max_new_tokens: the longest answer.
      rows: questions of a batch at most; by default what fits a cache of 256 MB, at most 128.
      longest_edge, split: of pictures, as in `Processor.__call__`.
    """

    def __init__(
        self,
        vlm: VLM,
        max_new_tokens: int,
        *,
        rows: int | None = None,
        longest_edge: int | None = None,
        split: bool | None = None,
    ) -> None:
        """UsageError for a number below 1."""
        if max_new_tokens < 1 or (rows is not None and rows < 1):
            raise UsageError("max_new_tokens and the batch size must be at least 1")
        self.vlm, self.max_new_tokens, self.rows = vlm, max_new_tokens, rows
        self.longest_edge, self.split = longest_edge, split
        processor, config = vlm.require_processor(), vlm.config
        tiles = vlm.tile_batch
        if tiles is None and config.vision is not None:
            tiles = _power_below(
                _PATCHES_AT_ONCE // (config.vision.image_size // config.vision.patch_size) ** 2
            )
        self._images = Generator(config, vlm.packed, processor.stop_ids, processor.pad_id, tiles)
        self._token_bytes = token_bytes(config.text, config.compute)

    def answers(
        self, items: Iterable[Item], unfit: Callable[[SmoljaxError], None] | None = None
    ) -> Iterator[tuple[Item, list[Generation]]]:
        """Every item with one answer a question, in order.

        Args:
          items: one is taken at a time.
          unfit: told of the error of the item taken last, which is then left out; None raises it.

        Raises:
          UsageError: a prompt is longer than the model's positions, or pictures are given to a text-only model.
          SmoljaxError: naming the record: a picture or the chat template is broken; the scores are not numbers.
        """
        chunk: list[Item] = []
        trunks: list[_Trunk] = []
        for item in items:
            try:
                found = self._trunks(item, len(chunk))
            except SmoljaxError as error:
                if unfit is None:
                    raise
                unfit(error)
                continue
            longest = max((len(trunk.ids) for trunk in (*trunks, *found)), default=0)
            if chunk and len(trunks) + len(found) > self._fit(longest):
                yield from self._run(chunk, trunks)
                chunk, trunks = [], []
                found = self._trunks(item, 0)
            chunk.append(item)
            trunks += found
        if chunk:
            yield from self._run(chunk, trunks)

    def _fit(self, slots: int) -> int:
        """Rows of `slots` tokens that fit one cache: a power of 2."""
        fit = _power_below(_CACHE_BYTES // (self._token_bytes * max(1, slots)))
        return min(fit, _MOST_ROWS)

    def _trunks(self, item: Item, number: int) -> list[_Trunk]:
        """The item's prompts, split into trunks and rests."""
        processor = self.vlm.require_processor()
        shared: dict[str, _Trunk] = {}
        try:
            for place, question in enumerate(item.questions):
                text = prompt_text(processor, question.messages)
                cut = text.rfind(IMAGE_TOKEN) + len(IMAGE_TOKEN) if IMAGE_TOKEN in text else 0
                if text[:cut] not in shared:
                    shared[text[:cut]] = self._open(item, text[:cut], number)
                trunk = shared[text[:cut]]
                trunk.questions.append(place)
                trunk.rests.append(_encoded(processor, text[cut:]))
                total = len(trunk.ids) + len(trunk.rests[-1]) + self.max_new_tokens
                if total > self.vlm.config.text.max_positions:
                    raise UsageError(
                        f"{total} tokens of prompt and answer are more than the model's "
                        f"{self.vlm.config.text.max_positions} positions"
                    )
        except SmoljaxError as error:
            raise type(error)(f"record {item.id}: {error}") from error
        return list(shared.values())

    def _open(self, item: Item, opening: str, number: int) -> _Trunk:
        if not opening:
            return _Trunk(number, np.zeros(0, np.int32), None, [], [])
        batch = self.vlm.prepare(
            text=opening, images=list(item.images), longest_edge=self.longest_edge, split=self.split
        )
        assert batch.pixel_values is not None
        return _Trunk(number, batch.input_ids[0], batch.pixel_values[0], [], [])

    def _run(
        self, chunk: Sequence[Item], trunks: Sequence[_Trunk]
    ) -> Iterator[tuple[Item, list[Generation]]]:
        found: list[list[Generation | None]] = [[None] * len(item.questions) for item in chunk]
        rows = self._rows(chunk, trunks)
        if rows:
            cache, slots = self._cache(trunks)
            for group in self._batches(rows, slots):
                for row, generation in zip(group, self._batch(cache, group), strict=False):
                    found[row.item][row.question] = generation
        for item, answers in zip(chunk, found, strict=True):
            assert all(answer is not None for answer in answers)
            yield item, [answer for answer in answers if answer is not None]

    def _rows(self, chunk: Sequence[Item], trunks: Sequence[_Trunk]) -> list[_Row]:
        encode = functools.partial(_encoded, self.vlm.require_processor())
        rows = []
        for number, trunk in enumerate(trunks):
            for place, rest in zip(trunk.questions, trunk.rests, strict=True):
                accepted = chunk[trunk.item].questions[place].accepted
                # A batch runs until its longest answer ends, so answers of like length go together.
                expected = len(encode(accepted[0])) if accepted else 0
                rows.append(_Row(trunk.item, place, number, rest, expected))
        return rows

    def _cache(self, trunks: Sequence[_Trunk]) -> tuple[KVCache, int]:
        """Keys and values of the trunks, in a number of rows and slots that few shapes cover."""
        config = self.vlm.config
        count = _power_above(len(trunks))
        slots = _round_up(max(len(trunk.ids) for trunk in trunks), _TRUNK_STEP)
        batch: dict[str, Any] = self._padded([trunk.ids for trunk in trunks], count, slots)
        tiles = [0 if trunk.pixels is None else len(trunk.pixels) for trunk in trunks]
        if any(tiles):
            most = _power_above(max(tiles))
            shape = next(trunk.pixels.shape[1:] for trunk in trunks if trunk.pixels is not None)
            pixels, real = np.zeros((count, most, *shape), np.float32), np.zeros((count, most), bool)
            for row, trunk in enumerate(trunks):
                if trunk.pixels is not None:
                    pixels[row, : tiles[row]], real[row, : tiles[row]] = trunk.pixels, True
            batch["image_features"] = self._images.encode_images({"pixel_values": pixels, "tile_mask": real})
            batch["tile_mask"] = real
        places = (batch["input_ids"] == config.image_token_id).sum()
        if config.vision is not None and places != sum(tiles) * config.image_seq_len:
            raise SmoljaxError("the processor's image tokens are not as many as the model's features")
        return programs.read_trunk(config, self.vlm.packed, batch), slots

    def _batches(self, rows: list[_Row], slots: int) -> Iterator[list[_Row]]:
        by_length: dict[int, list[_Row]] = defaultdict(list)
        for row in rows:
            by_length[_round_up(len(row.rest), _REST_STEP)].append(row)
        for length, group in sorted(by_length.items()):
            size = self.rows or self._fit(slots + length + self.max_new_tokens)
            group.sort(key=lambda row: (row.expected, row.trunk))
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _batch(self, cache: KVCache, group: list[_Row]) -> list[Generation]:
        length = _round_up(max(len(row.rest) for row in group), _REST_STEP)
        size = _power_above(len(group))
        rows = np.zeros(size, np.int32)
        rows[: len(group)] = [row.trunk for row in group]
        # Rows that fill the batch repeat its first question, so that they end when it does.
        rests = [np.asarray(row.rest, np.int32) for row in group]
        rests += [rests[0]] * (size - len(group))
        rows[len(group) :] = rows[0]
        batch = self._padded(rests, size, length)
        ends = np.asarray(self._images.stop_ids, np.int32), np.int32(self._images.pad_id)
        tokens, finite = programs.answer(
            self.vlm.config, self.max_new_tokens, self.vlm.packed, cache, rows, batch, *ends
        )
        if not bool(finite):
            raise SmoljaxError(
                "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
            )
        return self._images.collect([np.asarray(tokens)])[: len(group)]

    def _padded(self, ids: Sequence[np.ndarray], rows: int, length: int) -> dict[str, np.ndarray]:
        """Left-padded tokens and their mask, [rows, length]."""
        tokens = np.full((rows, length), self._images.pad_id, np.int32)
        mask = np.zeros((rows, length), bool)
        for row, own in enumerate(ids):
            tokens[row, length - len(own) :], mask[row, length - len(own) :] = own, True
        return {"input_ids": tokens, "attention_mask": mask}


def prompt_text(processor: Processor, messages: Sequence[chat.Message]) -> str:
    """A conversation as text up to where the answer begins, `<image>` where pictures go.

    A base model without a chat template continues the last message as plain text, its pictures first.
    """
    template = processor.config.chat_template
    if template is not None:
        return chat.render(
            template, messages, add_generation_prompt=True, special_tokens=processor.config.special_tokens
        )
    content = chat.normalise_messages(messages)[-1]["content"]
    places = IMAGE_TOKEN * sum(item["type"] == "image" for item in content)
    return places + " ".join(item["text"] for item in content if item["type"] == "text")


@functools.lru_cache(maxsize=1 << 15)
def _encoded(processor: Processor, text: str) -> list[int]:
    return processor.tokenizer.encode(text)


def _round_up(size: int, step: int) -> int:
    return max(1, -(-size // step)) * step


def _power_above(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _power_below(size: int) -> int:
    return 1 << (max(1, size).bit_length() - 1)
