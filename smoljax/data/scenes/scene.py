"""One scene of the data set: a pure function of split, index and seed."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from smoljax.data.scenes.draws import Draws
from smoljax.data.scenes.language import captions, facts, reference
from smoljax.data.scenes.layout import Layout, draw_layout
from smoljax.data.scenes.paint import character_cells, paint
from smoljax.data.scenes.questions import Question, ask_all
from smoljax.data.scenes.vocabulary import SPLITS
from smoljax.errors import UsageError

_PICTURE, _CONTENT = 1, 0


@dataclass(frozen=True)
class Scene:
    """A picture and all that is said of it.

    Attributes:
      id: "train/17".
      layout: what is in it, and where.
      captions: the three wordings.
      facts: what is true of it (`language.facts`).
      questions: with answers, grouped by kind.
      seed: of the data set.
    """

    id: str
    layout: Layout
    captions: tuple[str, ...]
    facts: tuple[str, ...]
    questions: tuple[Question, ...]
    seed: int

    def paint(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture [96, 96, 3] uint8 and its `cells` [12, 12] uint8 (`paint.paint`)."""
        split, index = self.id.split("/")
        return paint(self.layout, Draws(self.seed, SPLITS.index(split), int(index), _PICTURE))

    def example(self) -> dict[str, Any]:
        """What the TFDS builder stores (its features are listed in docs/scenes.md); `image` as PNG bytes."""
        image, cells = self.paint()
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png", compress_level=6)
        things = self.layout.things
        return {
            "id": self.id,
            "image": png.getvalue(),
            "background": self.layout.background,
            "objects": [
                {
                    "shape": thing.shape,
                    "colour": thing.colour,
                    "size": thing.size,
                    "texture": thing.texture,
                    "box": np.array(thing.box, np.int32),
                    "reference": reference(things, thing),
                }
                for thing in things
            ],
            "text": self.layout.print.text,
            "text_box": np.array(self.layout.print.box, np.int32),
            "captions": list(self.captions),
            "facts": list(self.facts),
            "questions": [
                {
                    "question": item.question,
                    "answer": item.answer,
                    "kind": item.kind,
                    "unseen_pair": item.unseen_pair,
                }
                for item in self.questions
            ],
            "cells": cells,
            "characters": character_cells(self.layout.print),
        }


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """The scene `index` of `split`.

    Args:
      split: "train", "validation", "test" or "test_compositional".
      index: 0 or more; the sizes of the splits are the builder's affair.
      seed: another seed is another data set.

    Raises:
      UsageError: no such split, or a negative number.
    """
    if split not in SPLITS:
        raise UsageError(f"scenes has no split {split!r}; it has {', '.join(SPLITS)}")
    if index < 0 or seed < 0:
        raise UsageError(f"scenes: index and seed must be 0 or more, got {index} and {seed}")
    draws = Draws(seed, SPLITS.index(split), index, _CONTENT)
    layout = draw_layout(draws, unseen=split == "test_compositional")
    questions = ask_all(layout, draws, unseen=split == "test_compositional")
    return Scene(
        f"{split}/{index}", layout, tuple(captions(layout)), tuple(facts(layout)), tuple(questions), seed
    )
