"""From data to what a task asks: every question of a record, its accepted answers, and the pictures they share.

Training draws a few conversations of a record each epoch; evaluation asks everything, in a fixed order. For `scenes`
that is `scenes_everything`; other data sets give what their mapping gives for epoch 0 (docs/data.md).
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from smoljax.data.config import OnError
from smoljax.data.mappings import CAPTION_PROMPTS, LOCATE_PROMPT, picture_size
from smoljax.data.records import Box, Record, ask
from smoljax.data.sources import MappedSource, open_source
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.chat import Message
from smoljax.processing.images import ImageInput, open_image
from smoljax.processing.locations import box_text

GREY = (128, 128, 128)
_CAPTION, _LOCATE = "caption", "locate"


@dataclass(frozen=True)
class Question:
    """One thing to ask about a record's pictures.

    Attributes:
      messages: the conversation up to the answer.
      accepted: every answer that is right; for a description its references.
      kind: what sort of question it is; "" for none.
      unseen_pair: whether the answer rests on a pair kept out of training; None where nothing is known.
      box: what is to be located, pixels of the first picture.
    """

    messages: tuple[Message, ...]
    accepted: tuple[str, ...] = ()
    kind: str = ""
    unseen_pair: bool | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def text(self) -> str:
        """What the user says last, for people to read."""
        content = next(message["content"] for message in reversed(self.messages) if message["role"] == "user")
        if isinstance(content, str):
            return content
        return " ".join(item["text"] for item in content if item["type"] == "text")


@dataclass(frozen=True)
class Item:
    """The pictures of one record and all that is asked about them.

    Attributes:
      id: of the record.
      images: its pictures.
      questions: in the record's order.
      facts: what is true of the picture, in the canonical form of `smoljax.data.scenes`; empty elsewhere.
      picture: names the pictures; records of the same name are about the same ones. "" where nothing is known.
    """

    id: str
    images: tuple[ImageInput, ...]
    questions: tuple[Question, ...]
    facts: tuple[str, ...] = field(default=(), repr=False)
    picture: str = ""


def scenes_everything(example: Mapping[str, Any], *, locations: int = 32) -> Record:
    """One picture of `scenes` with all there is to ask: a description, every question, the place of every object.

    Args:
      example: with the features of docs/scenes.md.
      locations: location tokens in the vocabulary; 0 leaves places out.

    Returns:
      The record; `caption` is the first of the picture's captions. `meta`: "kinds" and "unseen_pairs", one a
      conversation; "captions", all of them; "facts".
    """
    captions = tuple(_text(item) for item in example["captions"])
    talks, kinds = [ask(CAPTION_PROMPTS[0], captions[0])], [_CAPTION]
    unseen: list[bool | None] = [None]
    for entry in _rows(example["questions"]):
        talks.append(ask(_text(entry["question"]), _text(entry["answer"])))
        kinds.append(_text(entry["kind"]))
        unseen.append(bool(entry["unseen_pair"]))
    width, height = picture_size(example["image"])
    boxes = []
    for entry in _rows(example["objects"]):
        x0, y0, x1, y1 = (float(value) for value in entry["box"])
        if label := _text(entry["reference"]):
            boxes.append(Box(label, (x0, y0, x1, y1)))
    for box in boxes if locations else ():
        talks.append(ask(LOCATE_PROMPT.format(label=box.label), box_text(box.box, width, height, locations)))
        kinds.append(_LOCATE)
        unseen.append(None)
    return Record(
        id=_text(example["id"]),
        images=(example["image"],),
        conversations=tuple(talks),
        boxes=tuple(boxes),
        caption=captions[0],
        meta={
            "kinds": tuple(kinds),
            "unseen_pairs": tuple(unseen),
            "captions": captions,
            "facts": tuple(_text(item) for item in example["facts"]),
        },
    )


def open_records(
    data: str,
    *,
    locations: int = 32,
    captions: bool = False,
    data_dir: str | Path | None = None,
    mapping: Any = None,
    on_error: OnError = "raise",
) -> MappedSource:
    """Records with everything that can be asked of them.

    Args:
      data: "tfds:NAME[/CONFIG][:SPLIT]" or a .jsonl file.
      locations: location tokens of the model that will be asked (scenes only).
      captions: keep the "caption" of a .jsonl file's lines (scenes has one always).
      data_dir: where TFDS keeps prepared data.
      mapping: instead of the data set's own, as for `smoljax.data.sources.open_source`.
      on_error: "raise" at a record that cannot be used, or "skip" and count it.

    Raises:
      UsageError: no such form of data, or an unknown mapping.
      SmoljaxError: the data is missing or broken.
    """
    options: dict[str, Any] = {"on_error": on_error, "data_dir": data_dir}
    name = data.removeprefix("tfds:").split(":")[0].split("/")[0]
    if mapping is None and data.startswith("tfds:") and name == "scenes":
        return open_source(data, scenes_everything, locations=locations, **options)
    if captions and data.endswith(".jsonl") and mapping is None:
        options["contrastive"] = True
    return open_source(data, mapping, **options)


def vqa_item(record: Record, kinds: Collection[str] = (), split_by: str = "kind") -> Item:
    """Every conversation's last answer as a question; descriptions and places of `scenes` are left out.

    Args:
      record: `answers`, where it has any, are accepted for the last conversation; the others accept what the
        assistant says there.
      kinds: only these; empty: all.
      split_by: the key of `meta` that names a question's kind (its plural one a conversation, else one for all).
    """
    questions = []
    told, named = _each(record, "kind"), _each(record, split_by)
    unseen = _each(record, "unseen_pair")
    last = len(record.conversations) - 1
    for number, talk in enumerate(record.conversations):
        kind = "" if named[number] is None else str(named[number])
        if told[number] in (_CAPTION, _LOCATE) or (kinds and kind not in kinds):
            continue
        before, answer = _cut(talk, record.id)
        accepted = record.answers if record.answers and number == last else (answer,)
        pair = unseen[number]
        questions.append(Question(before, accepted, kind, None if pair is None else bool(pair)))
    return Item(record.id, record.images, tuple(questions), picture=picture_name(record))


def caption_item(record: Record) -> Item:
    """One description, asked as the record asks it; "Describe the picture." where it asks for none.

    References: `meta["captions"]`, else `answers`, else `caption`, else what the assistant says.
    """
    told = _each(record, "kind")
    talks = [talk for talk, kind in zip(record.conversations, told, strict=True) if kind in (None, _CAPTION)]
    if talks:
        before, answer = _cut(talks[0], record.id)
    else:
        before, answer = ask(CAPTION_PROMPTS[0], "", len(record.images))[:1], ""
    references = tuple(record.meta.get("captions", ())) or record.answers
    references = references or tuple(text for text in (record.caption or answer,) if text)
    if not references:
        raise SmoljaxError(f"record {record.id}: no description to compare with; give answers or a caption")
    question = Question(before, references, _CAPTION)
    facts = tuple(record.meta.get("facts", ()))
    return Item(record.id, record.images, (question,), facts, picture_name(record))


def grounding_item(record: Record) -> Item:
    """ "Locate {label}." for every box of the record, in the words that training uses."""
    questions = tuple(
        Question(ask(LOCATE_PROMPT.format(label=box.label), "")[:1], (box.label,), _LOCATE, box=box.box)
        for box in record.boxes
    )
    return Item(record.id, record.images[:1], questions, picture=picture_name(record))


def pair_of(record: Record) -> tuple[ImageInput, str]:
    """A picture and the text that belongs to it, for retrieval.

    The text is the record's `caption`, else its first answer, else what the assistant says first.

    Raises:
      SmoljaxError: the record has no picture.
    """
    if not record.images:
        raise SmoljaxError(f"record {record.id}: no picture, so nothing can be found by it")
    if record.caption is not None:
        return record.images[0], record.caption
    text = record.answers[0] if record.answers else _cut(record.conversations[0], record.id)[1]
    return record.images[0], text


def picture_name(record: Record) -> str:
    """What tells a record's pictures from others: `meta["picture"]`, else their paths, else ""."""
    if (name := record.meta.get("picture")) is not None:
        return str(name)
    paths = [os.fspath(image) for image in record.images if isinstance(image, str | os.PathLike)]
    return "|".join(paths) if len(paths) == len(record.images) else ""


def blinded(images: Sequence[ImageInput]) -> tuple[ImageInput, ...]:
    """Grey pictures of the same sizes: what a model says of them comes from the question alone."""
    return tuple(Image.new("RGB", size_of(image), GREY) for image in images)


def size_of(image: ImageInput) -> tuple[int, int]:
    """(width, height) of a picture as the processor will see it."""
    return open_image(image).size


def check_kinds(kinds: Collection[str], seen: Collection[str]) -> None:
    """UsageError if a kind that was asked for never occurred."""
    if missing := sorted(set(kinds) - set(seen)):
        known = ", ".join(sorted(kind for kind in seen if kind)) or "none"
        raise UsageError(f"no question of kind {', '.join(missing)} in the data; its kinds: {known}")


def _each(record: Record, key: str) -> Sequence[Any]:
    """What `meta` says of each conversation: its plural's entries, or one value for all."""
    many = record.meta.get(f"{key}s")
    if many is not None and len(many) == len(record.conversations):
        return many
    return [record.meta.get(key)] * len(record.conversations)


def _cut(talk: Sequence[Message], name: str) -> tuple[tuple[Message, ...], str]:
    """The messages before the last answer, and the answer."""
    last = max(index for index, message in enumerate(talk) if message["role"] == "assistant")
    if not any(message["role"] == "user" for message in talk[:last]):
        raise SmoljaxError(f"record {name}: the assistant answers before the user has asked anything")
    content = talk[last]["content"]
    text = content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
    return tuple(talk[:last]), text.strip()


def _rows(feature: Any) -> list[Mapping[str, Any]]:
    """A TFDS sequence of dicts, which comes as a dict of arrays, as a list of dicts."""
    if not isinstance(feature, Mapping):
        return list(feature)
    count = len(next(iter(feature.values())))
    return [{key: values[index] for key, values in feature.items()} for index in range(count)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
