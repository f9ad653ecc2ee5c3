"""From an example of a data set, a dict of features, to a `Record`: named functions, and a place for your own.

A mapping is called as `mapping(example, **options)`, and with `rng=` too if it has such an argument: a NumPy
generator that depends on the seed, the epoch and the record's number alone, so a draw can be repeated.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smoljax.data.records import Box, Record, ask
from smoljax.data.scenes.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.chat import Message
from smoljax.processing.locations import box_text

RecordMapping = Callable[..., Record]

#: How a description is asked for; evaluation uses the first.
CAPTION_PROMPTS = ("Describe the picture.", "What does the picture show?", "What can be seen here?")
#: How a place is asked for.
LOCATE_PROMPT = "Locate {label}."

_SCENE_PATCHES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}


def scenes_record(
    example: Mapping[str, Any],
    *,
    questions: int | None = 4,
    caption: bool = True,
    boxes: int = 1,
    kinds: Mapping[str, float] | None = None,
    contrastive: bool = False,
    dense: bool = False,
    locations: int = 32,
    rng: np.random.Generator | None = None,
) -> Record:
    """One picture of `scenes` with conversations drawn for training.

    Args:
      example: with the features of docs/scenes.md; the picture as an array or as encoded bytes.
      questions: how many of its questions, without repeats; None: all, in their order.
      caption: ask for a description too, in one of three ways, answered by one of its captions.
      boxes: how many objects to ask the place of ("Locate the red circle."), of those with a phrase of their
        own; the answer is four location tokens.
      kinds: sampling weight of a question by its kind; 1 for kinds not named, 0 leaves a kind out.
      contrastive: give a caption as the record's `caption`.
      dense: give `patches`: "object_shape", "object_colour", "object_size", "object_texture" (0 = none, else
        1 + the place in the vocabulary of `smoljax.data.scenes`) and "character" (1 to 26 letters, 27 to 36
        digits), each [12, 12] int32.
      locations: location tokens in the vocabulary.
      rng: decides every draw; None draws as the seed 0 does.

    Returns:
      The record; `meta["kinds"]` has one entry a conversation: "caption", the question's kind or "locate".

    Raises:
      SmoljaxError: no conversation is left to learn from.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    name = _text(example["id"])
    captions = [_text(item) for item in example["captions"]]
    talks: list[tuple[Message, ...]] = []
    told: list[str] = []
    if caption:
        prompt = CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
        talks.append(ask(prompt, captions[rng.integers(len(captions))]))
        told.append("caption")
    objects = _columns(example["objects"], ("reference", "box", "shape", "colour", "size", "texture"))
    named = [index for index, phrase in enumerate(objects["reference"]) if len(phrase)]
    if boxes and len(named) > boxes:
        named = [named[index] for index in rng.permutation(len(named))[:boxes]]
    found = tuple(_box(objects, index) for index in named[:boxes])
    width, height = picture_size(example["image"]) if found else (0, 0)
    for item in found:
        talks.append(locate(item, width, height, locations))
        told.append("locate")
    asked = _columns(example["questions"], ("question", "answer", "kind"))
    for index in _draw(asked["kind"], questions, kinds, rng):
        talks.append(ask(_text(asked["question"][index]), _text(asked["answer"][index])))
        told.append(_text(asked["kind"][index]))
    if not talks and not contrastive and not dense:
        raise SmoljaxError(f"scenes {name}: no conversation left; ask for a caption, questions or boxes")
    return Record(
        id=name,
        images=(example["image"],),
        conversations=tuple(talks),
        boxes=found,
        caption=captions[rng.integers(len(captions))] if contrastive else None,
        meta={"kinds": tuple(told)},
        patches=_scene_patches(example, objects) if dense else {},
    )


def locate(box: Box, width: float, height: float, locations: int, pictures: int = 1) -> tuple[Message, ...]:
    """A conversation that asks for the place of a named box; the answer is four of `locations` tokens."""
    answer = box_text(box.box, width, height, locations)
    return ask(LOCATE_PROMPT.format(label=box.label), answer, pictures)


def mnist_record(example: Mapping[str, Any]) -> Record:
    """A digit of the TFDS data set `mnist` (`image` uint8 [28, 28, 1], `label`) and the question which it is."""
    answer = str(int(example["label"]))
    talk = ask("Which digit is this?", answer)
    return Record("mnist", (example["image"],), (talk,), answers=(answer,))


def coco_captions_record(
    example: Mapping[str, Any],
    *,
    contrastive: bool = False,
    prompt: str = CAPTION_PROMPTS[0],
    rng: np.random.Generator | None = None,
) -> Record:
    """A picture of the TFDS data set `coco_captions` with one of its captions; all of them are `answers`.

    Args:
      example: `image` uint8 [h, w, 3], `captions` with a `text` each, `image/id` or `image/filename`.
      contrastive: give the drawn caption as the record's `caption` too.
      prompt: how the description is asked for.
      rng: draws the caption; None takes the first.
    """
    texts = [_text(item).strip() for item in _columns(example["captions"], ("text",))["text"]]
    chosen = texts[0 if rng is None else int(rng.integers(len(texts)))]
    return Record(
        id=_text(example.get("image/filename", example.get("image/id", "coco_captions"))),
        images=(example["image"],),
        conversations=(ask(prompt, chosen),),
        answers=tuple(texts),
        caption=chosen if contrastive else None,
    )


def pairs_record(
    example: Mapping[str, Any], *, contrastive: bool = False, prompt: str = CAPTION_PROMPTS[0]
) -> Record:
    """A picture with one caption, as `experiments.beam` prepares them.

    Args:
      example: `image` uint8 [h, w, 3], `caption`.
      contrastive: give the caption as the record's `caption` too.
      prompt: how the description is asked for.
    """
    caption = _text(example["caption"]).strip()
    return Record(
        id=caption[:40],
        images=(example["image"],),
        conversations=(ask(prompt, caption),),
        answers=(caption,),
        caption=caption if contrastive else None,
    )


_MAPPINGS: dict[str, RecordMapping] = {
    "scenes": scenes_record,
    "mnist": mnist_record,
    "coco_captions": coco_captions_record,
    "pairs": pairs_record,
}


def register_mapping(name: str, mapping: RecordMapping) -> None:
    """Makes a mapping known by a name, for configs that can hold only text. UsageError if the name is taken."""
    if _MAPPINGS.get(name, mapping) is not mapping:
        raise UsageError(f"there is a mapping {name!r} already; choose another name")
    _MAPPINGS[name] = mapping


def find_mapping(
    mapping: str | RecordMapping | None, default: str, options: Mapping[str, Any]
) -> RecordMapping:
    """A function (example, rng) → Record with the options put in.

    Args:
      mapping: a registered name, a function, or None for the one named `default`.
      default: the data set's own name.
      options: keyword arguments of the mapping.

    Raises:
      UsageError: no such mapping, or it takes no such option.
    """
    if mapping is None or isinstance(mapping, str):
        name = default if mapping is None else mapping
        if name not in _MAPPINGS:
            raise UsageError(
                f"no mapping {name!r}; known: {', '.join(sorted(_MAPPINGS))}. Give a function from an example to "
                "a Record, or name one with smoljax.data.mappings.register_mapping"
            )
        function = _MAPPINGS[name]
    else:
        function = mapping
    parameters = inspect.signature(function).parameters
    free = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    wrong = sorted(key for key in options if not free and (key not in parameters or key == "rng"))
    if wrong:
        raise UsageError(f"the mapping of {default} has no option {', '.join(wrong)}")
    bound = functools.partial(function, **options)
    if free or "rng" in parameters:
        return lambda example, rng: bound(example, rng=rng)
    return lambda example, rng: bound(example)


def picture_size(image: Any) -> tuple[int, int]:
    """(width, height) of an array or of encoded bytes, the latter without decoding them."""
    if isinstance(image, bytes):
        import io

        from PIL import Image

        with Image.open(io.BytesIO(image)) as opened:
            return opened.size
    height, width = np.shape(image)[:2]
    return width, height


def _draw(
    kinds: Sequence[Any], count: int | None, weights: Mapping[str, float] | None, rng: np.random.Generator
) -> list[int]:
    """Numbers of `count` questions, drawn without repeats in proportion to their weights; None: all."""
    weight = np.array([1.0 if weights is None else weights.get(_text(kind), 1.0) for kind in kinds])
    allowed = np.flatnonzero(weight > 0)
    if count is None:
        return allowed.tolist()
    # The smallest of exponential variables with these rates: successive sampling without replacement
    # (Efraimidis and Spirakis 2006).
    keys = rng.exponential(size=len(weight))[allowed] / weight[allowed]
    return allowed[np.argsort(keys, kind="stable")[:count]].tolist()


def _box(objects: Mapping[str, Sequence[Any]], index: int) -> Box:
    x0, y0, x1, y1 = (float(value) for value in objects["box"][index])
    return Box(_text(objects["reference"][index]), (x0, y0, x1, y1))


def _scene_patches(example: Mapping[str, Any], objects: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    cells = np.asarray(example["cells"])
    patches = {}
    for name, vocabulary in _SCENE_PATCHES.items():
        labels = [0, *(1 + vocabulary.index(_text(item)) for item in objects[name])]
        patches[f"object_{name}"] = np.array(labels, np.int32)[cells]
    return {**patches, "character": np.asarray(example["characters"]).astype(np.int32)}


def _columns(feature: Any, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    # TFDS gives a Sequence of dicts as a dict of arrays; examples written by hand are lists of dicts.
    if isinstance(feature, Mapping):
        return feature
    return {name: [item[name] for item in feature] for name in names}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
