"""From a `Record` to the arrays of one example: tokens, what is learned of them, who sees whom, pixels."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from smoljax.data.config import LossOn, check_choice
from smoljax.data.records import Record
from smoljax.data.transcript import Span, split_at_pictures, transcript, user_turn
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.config import ProcessorConfig
from smoljax.processing.processor import Batch, Processor
from smoljax.processing.prompt import picture_text
from smoljax.processing.tokenizer import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    GLOBAL_TOKEN,
    IM_END,
    IMAGE_TOKEN,
    Tokenizer,
)


@dataclass(frozen=True)
class Example:
    """One record as arrays; n tokens, I tiles.

    Attributes:
      input_ids: [n] int32.
      loss_mask: [n] bool, True where the token is a target: predicted from the token before it.
      branch_ids: [n] int32, 0 = trunk, seen by all; 1, 2, … see the trunk and themselves.
      segments: [n] int32, 0 = the record, 1 = its caption on its own, which sees no picture.
      positions: [n] int32, place in the conversation: branches all go on where the trunk ends.
      pixel_values: [I, 3, h, w] float32, I may be 0.
      pair_image: the token whose final state stands for the picture, -1 = none.
      pair_text: the token whose final state stands for the caption, -1 = none.
      patches: label's name → [P] int32, P patches of the only tile, row by row; 0 = none.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    branch_ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    pixel_values: np.ndarray
    pair_image: int = -1
    pair_text: int = -1
    patches: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens, of all branches and segments."""
        return len(self.input_ids)

    @property
    def tiles(self) -> int:
        """Tiles of all pictures."""
        return len(self.pixel_values)


def encode(
    record: Record,
    processor: Processor,
    *,
    loss_on: LossOn = "smolvlm2",
    longest_edge: int | None = None,
    split: bool | None = None,
    max_length: int | None = None,
    fit: bool = False,
) -> Example:
    """Turns a record into arrays.

    The layout. Everything up to the last picture's tokens is the trunk; it must be the same text in all
    conversations. What follows in each conversation is a branch, with positions that go on from the trunk. A
    record with one conversation and no caption is a single line instead: all of it is branch 0. A caption
    (with a picture to belong to) adds a branch of the turn's end token alone, whose state sees the picture and
    nothing else (`pair_image`), and a segment "<|im_start|>User: {caption}<end_of_utterance>" that sees no
    picture (`pair_text` is its last token). Neither is learned.

    What is learned. "smolvlm2" does as the training code of SmolVLM2 does: everything but pictures (the image
    tokens and the marks around them) and the messages of system and user up to, not including, the token that
    ends them; so "<end_of_utterance>\\n", "Assistant:" and the answers are learned. "answers" learns the
    assistant's words and the token that ends them. The first token of a segment or of a branch is never a
    target: nothing in its row comes right before it.

    Args:
      record: its conversations checked (`smoljax.data.records.check_conversation`).
      processor: of the model that will be trained.
      loss_on: "smolvlm2" or "answers".
      longest_edge, split: of pictures, as in `Processor.__call__`.
      max_length: the most tokens.
      fit: of a record with several conversations, leave out those that no longer fit `max_length`.

    Raises:
      SmoljaxError: naming the record: too long, a broken picture, conversations that do not share a beginning,
        a chat template that is missing or failed, dense labels with more than one tile.
    """
    check_choice("loss_on", loss_on, LossOn)
    try:
        return _encode(record, processor, loss_on, longest_edge, split, max_length, fit)
    except SmoljaxError as error:
        raise type(error)(f"record {record.id}: {error}") from error


def _encode(
    record: Record,
    processor: Processor,
    loss_on: LossOn,
    longest_edge: int | None,
    split: bool | None,
    max_length: int | None,
    fit: bool,
) -> Example:
    template = processor.config.chat_template
    if template is None:
        raise UsageError("no chat template in this checkpoint (a base model), which training on chats needs")
    tokenizer, special = processor.tokenizer, processor.config.special_tokens
    paired = record.caption is not None and len(record.images) > 0
    talks = [transcript(template, special, messages, loss_on) for messages in record.conversations]
    if not talks and not record.images:
        raise SmoljaxError("no conversation and no picture, so there is nothing to learn")
    if paired or not talks:
        # A conversation that stops right after the pictures: what the picture's vector is read from.
        bare = ({"role": "user", "content": [{"type": "image"}] * len(record.images)},)
        talks.insert(0, transcript(template, special, bare, "answers"))
    cut = split_at_pictures(talks[0].text)
    opening = talks[0].text[:cut]
    if any(talk.text[:cut] != opening or split_at_pictures(talk.text) != cut for talk in talks):
        raise SmoljaxError(
            "its conversations do not begin alike up to the last picture; put all pictures first in each, after "
            "the same system message" + (", none with a caption" if paired else "")
        )
    parts = _Parts()
    if record.images:
        if not opening:
            raise SmoljaxError(f'no {{"type": "image"}} item for its {len(record.images)} picture(s)')
        batch = processor(text=opening, images=list(record.images), longest_edge=longest_edge, split=split)
        assert batch.pixel_values is not None
        trunk, pixels = batch.input_ids[0], batch.pixel_values[0]
        learned = np.zeros(len(trunk), bool)
        if spans := _expanded(opening, talks[-1].learned, batch, processor.config):
            _, learned = _tokens(tokenizer, batch.text[0], spans)
        parts.add(trunk, np.concatenate([np.zeros(1, bool), learned[1:]]), branch=0, start=0)
    else:
        pixels = _no_pixels(processor)
    start = parts.length
    branched = paired or len(talks) > 1
    pair_image = pair_text = -1
    caption = np.zeros(0, np.int32)
    if paired:
        assert record.caption is not None
        caption, _ = _tokens(tokenizer, user_turn(template, special, record.caption), ())
    room = max_length - len(caption) if fit and branched and max_length is not None else None
    for number, talk in enumerate(talks):
        if number == 0 and paired:
            pair_image = parts.length
            end = _end_id(tokenizer, talk.text[cut:])
            parts.add(np.array([end], np.int32), np.zeros(1, bool), branch=1, start=start)
            continue
        spans = tuple((max(0, a - cut), b - cut) for a, b in talk.learned if b > cut)
        ids, learned = _tokens(tokenizer, talk.text[cut:], spans)
        if room is not None and parts.length + len(ids) > room and number > 0:
            continue
        branch = number + 1 if branched else 0
        if branched or not start:
            learned = np.concatenate([np.zeros(1, bool), learned[1:]])
        parts.add(ids, learned, branch=branch, start=start)
    if paired:
        pair_text = parts.length + len(caption) - 1
        parts.add(caption, np.zeros(len(caption), bool), branch=0, start=0, segment=1)
    if max_length is not None and parts.length > max_length:
        raise SmoljaxError(
            f"{parts.length} tokens ({start} of them up to the end of its pictures), more than the "
            f"{max_length} of a row; raise sequence_length, ask for fewer conversations or shrink its pictures"
        )
    return Example(
        **parts.arrays(),
        pixel_values=pixels,
        pair_image=pair_image,
        pair_text=pair_text,
        patches=_patches(record, len(pixels)),
    )


def _expanded(
    opening: str, learned: tuple[Span, ...], batch: Batch, config: ProcessorConfig
) -> tuple[Span, ...]:
    """The spans that lie in the trunk, as characters of its text with the pictures' tokens written out."""
    spans = [(first, min(last, len(opening))) for first, last in learned if first < len(opening)]
    if not spans:
        return ()
    places = [match.end() for match in re.finditer(re.escape(IMAGE_TOKEN), opening)]
    texts = [picture_text(*grid, config.image_seq_len, config.tile_tokens) for grid in batch.grids[0]]
    grown = [len(text) - len(IMAGE_TOKEN) for text in texts]

    def moved(place: int) -> int:
        return place + sum(more for end, more in zip(places, grown, strict=True) if end <= place)

    return tuple((moved(first), moved(last)) for first, last in spans)


class _Parts:
    """Tokens gathered piece by piece."""

    def __init__(self) -> None:
        self.length = 0
        self._ids: list[np.ndarray] = []
        self._learned: list[np.ndarray] = []
        self._layout: list[tuple[int, int, int, int]] = []  # length, branch, segment, first position

    def add(self, ids: np.ndarray, learned: np.ndarray, *, branch: int, start: int, segment: int = 0) -> None:
        self._ids.append(ids)
        self._learned.append(learned)
        self._layout.append((len(ids), branch, segment, start))
        self.length += len(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        layout = np.array(self._layout, np.int32)
        counts = layout[:, 0]
        # Position = place in the array, moved so that each piece begins where it should.
        begins = np.cumsum(counts, dtype=np.int32) - counts
        moved = np.repeat(layout[:, 3] - begins, counts)
        return {
            "input_ids": np.concatenate(self._ids),
            "loss_mask": np.concatenate(self._learned),
            "branch_ids": np.repeat(layout[:, 1], counts),
            "segments": np.repeat(layout[:, 2], counts),
            "positions": np.arange(self.length, dtype=np.int32) + moved,
        }


@functools.lru_cache(maxsize=1 << 15)
def _tokens(
    tokenizer: Tokenizer, text: str, spans: tuple[tuple[int, int], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [n] int32 of a text and which of them lie in the spans [n] bool; picture tokens never do."""
    ids, starts = tokenizer.encode_with_starts(text)
    array, starts = np.array(ids, np.int32), np.array(starts, np.int32)
    learned = np.zeros(len(ids), bool)
    for first, last in spans:
        learned |= (starts >= first) & (starts < last)
    learned &= ~np.isin(array, _picture_ids(tokenizer))
    array.flags.writeable = learned.flags.writeable = False  # they are shared by all who ask again
    return array, learned


@functools.lru_cache(maxsize=16)
def _picture_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids [k] int32 of `<image>`, `<global-img>`, the mark around pictures and the places of the grid."""
    names = [GLOBAL_TOKEN, FAKE_TOKEN]
    names += [f"<row_{row}_col_{col}>" for row in range(1, 9) for col in range(1, 9)]
    found = [tokenizer.image_id, *(tokenizer.token_id(name) for name in names)]
    return np.array([item for item in found if item is not None], np.int32)


def _end_id(tokenizer: Tokenizer, rest: str) -> int:
    """The token that ends the turn, from what the template writes after the pictures."""
    for name in (END_OF_UTTERANCE, IM_END):
        found = tokenizer.token_id(name)
        if found is not None and rest.startswith(name):
            return found
    raise SmoljaxError(
        f"the chat template does not end a turn with {END_OF_UTTERANCE} or {IM_END}, which a contrastive pair "
        "needs; leave captions out"
    )


def _no_pixels(processor: Processor) -> np.ndarray:
    size = processor.config.image.tile_size if processor.config.image else 0
    return np.zeros((0, 3, size, size), np.float32)


def _patches(record: Record, tiles: int) -> dict[str, np.ndarray]:
    if record.patches and tiles != 1:
        raise SmoljaxError(
            f"patch labels belong to a single tile, but its pictures make {tiles}; set split to false, or leave "
            "the labels out"
        )
    return {name: np.asarray(labels, np.int32).reshape(-1) for name, labels in record.patches.items()}
