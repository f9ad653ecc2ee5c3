"""A question about one picture → answer, boxes and the map of where the answer comes from."""

import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from smoljax.errors import UsageError
from smoljax.generation.options import Generation
from smoljax.grounding.explain import Relevance, relevance
from smoljax.processing.images import ImageInput, open_image
from smoljax.processing.locations import Box, find_boxes
from smoljax.processing.processor import Batch
from smoljax.processing.tokenizer import Tokenizer
from smoljax.vlm import VLM

_RUN = re.compile(r"(?:<loc_\d+>){4}")
_TOKEN = re.compile(r"<loc_\d+>")
_COMMAND = re.compile(
    r"(?:please\s+)?(?:locate|find|detect|point (?:at|to)|show(?: me)?|box)\s+(.+)", re.I | re.S
)


@dataclass(frozen=True)
class LabelledBox:
    """A box x0, y0, x1, y1 in pixels of the picture, and the words that it belongs to."""

    label: str
    box: Box


@dataclass(frozen=True)
class Grounding:
    """What `ground` found.

    Attributes:
      prompt: the question.
      answer: the text, location tokens written out.
      boxes: of the answer's location tokens, in order.
      relevance: of the prompt for the answer.
      picture: as the model was given it, RGB, upright; boxes and heat are in its pixels.
      batch: the prompt.
    """

    prompt: str
    answer: str
    boxes: tuple[LabelledBox, ...]
    relevance: Relevance
    picture: Image.Image
    batch: Batch


def ground(
    vlm: VLM,
    image: ImageInput,
    prompt: str,
    *,
    answer: str | None = None,
    max_new_tokens: int = 64,
    patches: bool = False,
    longest_edge: int | None = None,
    split: bool | None = None,
) -> Grounding:
    """Answers a prompt about one picture and says where the answer comes from.

    Args:
      vlm: a loaded model that sees.
      image: a path, a PIL picture or a uint8 array [h, w, 3].
      prompt: what to ask.
      answer: explain these words instead of generating some ("why not blue?").
      max_new_tokens: the longest generated answer.
      patches: a map of single patches instead of image tokens (see `smoljax.grounding.relevances`).
      longest_edge, split: as in `Processor.__call__`.

    Raises:
      UsageError: a text-only model, an empty prompt or answer, too many tokens.
      SmoljaxError: the picture is broken, or the model's scores are not numbers.
    """
    if answer is not None and not answer.strip():
        raise UsageError("the answer to explain is empty")
    picture = open_image(image)
    batch = vlm.prepare(prompt=prompt, images=[picture], longest_edge=longest_edge, split=split)
    tokenizer = vlm.require_processor().tokenizer
    if answer is None:
        generation = vlm.generator.generate(batch.arrays(), max_new_tokens)[0]
        text = answer_text(vlm, generation)
        ids = [token for token in generation.token_ids if token not in vlm.generator.stop_ids]
        ids = ids or generation.token_ids  # an empty answer: why it stopped at once
    else:
        text = answer.strip()
        # Behind "Assistant:" the models write a blank first; a template that ends otherwise wants none.
        ids = tokenizer.encode((" " if batch.text[0].endswith(":") else "") + text)
    return Grounding(
        prompt=prompt,
        answer=text,
        boxes=tuple(labelled_boxes(text, prompt, *picture.size, location_count(tokenizer))),
        relevance=relevance(vlm, batch, ids, patches=patches),
        picture=picture,
        batch=batch,
    )


def location_count(tokenizer: Tokenizer) -> int:
    """How many bins a side the vocabulary has: tokens `<loc_0>`, `<loc_1>`, …; 0 for one that has none."""
    count = 0
    while tokenizer.token_id(f"<loc_{count}>") is not None:
        count += 1
    return count


def answer_text(vlm: VLM, generation: Generation) -> str:
    """The text of an answer with its location tokens written out, other special tokens left out."""
    tokenizer = vlm.require_processor().tokenizer
    pieces: list[str] = []
    plain: list[int] = []

    def finish() -> None:
        pieces.append(tokenizer.decode(plain))
        plain.clear()

    for token in generation.token_ids:
        name: Any = tokenizer.token(token)
        if token not in vlm.generator.stop_ids and name is not None and _TOKEN.fullmatch(name):
            finish()
            pieces.append(name)
        elif token not in vlm.generator.stop_ids:
            plain.append(token)
    finish()
    return "".join(pieces).strip()


def labelled_boxes(text: str, prompt: str, width: float, height: float, count: int) -> list[LabelledBox]:
    """The boxes in an answer with the words in front of each; without any, with what the prompt asked for.

    Args:
      text: the answer, location tokens written out.
      prompt: "Locate the red circle." labels a bare box "the red circle".
      width, height: of the picture in pixels.
      count: bins a side; 0, as in a vocabulary without location tokens, finds none.
    """
    boxes: list[LabelledBox] = []
    end = 0
    for match in _RUN.finditer(text) if count else ():
        words = text[end : match.start()].strip(" \n\t,;:.&")
        end = match.end()
        (box,) = find_boxes(match.group(), width, height, count)
        boxes.append(LabelledBox(words or _asked_for(prompt), box))
    return boxes


def _asked_for(prompt: str) -> str:
    words = prompt.strip().rstrip(".?! ")
    match = _COMMAND.fullmatch(words)
    return match.group(1) if match else words
