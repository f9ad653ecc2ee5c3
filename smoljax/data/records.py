"""What every data set is turned into before it is encoded: a `Record`. No jax in here.

The ways in are `smoljax.data.jsonl` (files), `smoljax.data.tfds` (TensorFlow Datasets) and whatever else gives
a `Source`; the ways out are `smoljax.data.encode` (arrays) and the tasks of `smoljax.evaluation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from smoljax.errors import SmoljaxError
from smoljax.processing.chat import Message
from smoljax.processing.images import ImageInput
from smoljax.processing.tokenizer import IMAGE_TOKEN

_NO_MARK = 'which stand for a picture; write them otherwise, or give the picture as {"type": "image"}'
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Box:
    """A named box in a picture.

    Attributes:
      label: what it holds, as one would say it: "the red circle".
      box: x0, y0, x1, y1 in pixels of the picture; x1 and y1 are the first pixels outside.
    """

    label: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Record:
    """One or more pictures and what is said about them.

    Attributes:
      id: names the record in messages.
      images: the pictures, in the order of their places in each conversation.
      conversations: usually one; several are separate chats about the same pictures, encoded side by side
        ("branches") so that the pictures are looked at once.
      answers: all accepted answers to the last question.
      boxes: named boxes of the first picture.
      caption: the text that belongs to the picture, for contrastive training and retrieval.
      meta: anything else, e.g. {"kind": "relation", "unseen_pair": True}.
      patches: labels for each patch of the only tile: name → [rows, cols] int32, 0 = none.
    """

    id: str
    images: tuple[ImageInput, ...]
    conversations: tuple[tuple[Message, ...], ...]
    answers: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    caption: str | None = None
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    patches: Mapping[str, np.ndarray] = field(default_factory=lambda: MappingProxyType({}))


class Source(Protocol):
    """Records by number. `smoljax.data.sources.MappedSource` implements it over any kind of examples."""

    @property
    def name(self) -> str:
        """What it was opened from, for messages."""
        ...

    @property
    def skipped(self) -> Mapping[int, str]:
        """Records that were left out so far: number → why. Always empty with `on_error="raise"`."""
        ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """Where a record stands, for messages: FILE:LINE, or NAME[NUMBER]."""
        ...

    def __getitem__(self, index: int) -> Record: ...

    def read(self, index: int, epoch: int = 0) -> Record | None:
        """The record as it is in one epoch; None where it is left out."""
        ...

    def skip(self, index: int, why: str) -> None:
        """Notes a record as left out."""
        ...


def ask(text: str, answer: str, pictures: int = 1) -> tuple[Message, ...]:
    """One question and its answer, the pictures' places first."""
    places: list[dict[str, str]] = [{"type": "image"}] * pictures
    return (
        {"role": "user", "content": [*places, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    )


def check_conversation(messages: Sequence[Any], pictures: int, where: str) -> None:
    """SmoljaxError, beginning with `where`, for a conversation that cannot be learned from.

    Each message needs a known role and a content; there must be an assistant's message, and as many places
    for pictures as there are pictures.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise SmoljaxError(f"{where}: no messages; give [{{'role': 'user', 'content': …}}, …]")
    places = 0
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise SmoljaxError(f"{where}: message {number} is not an object with 'role' and 'content'")
        if any(IMAGE_TOKEN in text for text in _texts(message.get("content"))):
            raise SmoljaxError(f"{where}: message {number} has the characters {IMAGE_TOKEN}, {_NO_MARK}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise SmoljaxError(f"{where}: message {number} has the role {role!r}; known: {', '.join(ROLES)}")
        if isinstance(content, str):
            continue
        if not isinstance(content, Sequence) or not content:
            raise SmoljaxError(f"{where}: message {number} has no 'content' (a text or a list of items)")
        for item in content:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind == "image":
                places += 1
            elif kind != "text" or not isinstance(item.get("text"), str):
                raise SmoljaxError(
                    f"{where}: message {number} has an item that is neither "
                    '{"type": "text", "text": …} nor {"type": "image"}'
                )
    if not any(message["role"] == "assistant" for message in messages):
        raise SmoljaxError(f"{where}: no assistant's message, so there is nothing to learn")
    if places != pictures:
        raise SmoljaxError(
            f"{where}: {places} place{'s' * (places != 1)} for {pictures} picture{'s' * (pictures != 1)}; "
            'put one {"type": "image"} item for each'
        )


def check_caption(caption: str | None, where: str) -> None:
    """SmoljaxError, beginning with `where`, for a caption that cannot stand alone."""
    if caption is not None and IMAGE_TOKEN in caption:
        raise SmoljaxError(f"{where}: the caption has the characters {IMAGE_TOKEN}, {_NO_MARK}")


def _texts(content: Any) -> list[str]:
    """A message's own words, whatever its form."""
    items = [content] if isinstance(content, str) else content if isinstance(content, Sequence) else []
    found = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    return [text for text in found if isinstance(text, str)]
