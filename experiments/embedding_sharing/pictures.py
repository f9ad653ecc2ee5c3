"""What the lab knows about the pictures it measures with: scenes, drawn again from their numbers."""

from dataclasses import dataclass

import numpy as np

from smoljax.data.mappings import scenes_record
from smoljax.data.records import Record
from smoljax.data.scenes.scene import Scene, scene
from smoljax.data.scenes.vocabulary import COLOURS, SHAPES
from smoljax.processing.tokenizer import Tokenizer

NOTHING = -1


@dataclass(frozen=True)
class Pictures:
    """Some scenes of a split.

    Attributes:
      scenes: in the order of their numbers.
      images: [96, 96, 3] uint8 each.
      captions: one each.
      cells: [12, 12] each, which object shows there, from 1; 0 for none.
    """

    scenes: list[Scene]
    images: list[np.ndarray]
    captions: list[str]
    cells: list[np.ndarray]

    def objects(self, side: int) -> np.ndarray:
        """[N, side²]: the object that an image token shows, from 0; NOTHING where none fills a third of it."""
        return np.stack([token_objects(cells, side) for cells in self.cells])

    def names(self, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shape and colour [N, Q] of `objects`, as places in the vocabulary; NOTHING where there is none."""
        shapes, colours = np.full(objects.shape, NOTHING), np.full(objects.shape, NOTHING)
        for row, picture in enumerate(self.scenes):
            for place in np.flatnonzero(objects[row] != NOTHING):
                thing = picture.layout.things[objects[row, place]]
                shapes[row, place] = SHAPES.index(thing.shape)
                colours[row, place] = COLOURS.index(thing.colour)
        return shapes, colours


def pictures(split: str, count: int) -> Pictures:
    """The first `count` scenes of a split."""
    drawn = [scene(split, index) for index in range(count)]
    painted = [item.paint() for item in drawn]
    return Pictures(
        drawn,
        [image for image, _ in painted],
        [item.captions[0] for item in drawn],
        [cells for _, cells in painted],
    )


def token_objects(cells: np.ndarray, side: int) -> np.ndarray:
    """[side²] of `Pictures.objects` for one picture."""
    fine = np.kron(cells, np.ones((side, side), int))  # side·12 cells a side: any grid divides it
    blocks = fine.reshape(side, len(cells), side, len(cells)).transpose(0, 2, 1, 3).reshape(side * side, -1)
    found = []
    for block in blocks:
        ids, count = np.unique(block[block > 0], return_counts=True)
        best = count.argmax() if len(ids) else 0
        found.append(int(ids[best]) - 1 if len(ids) and 3 * count[best] >= block.size else NOTHING)
    return np.array(found)


def word_ids(tokenizer: Tokenizer, word: str) -> frozenset[int]:
    """The ids that are this word alone: after a blank or not, capital or not."""
    forms = {word, word.capitalize(), f" {word}", f" {word.capitalize()}"}
    encoded = [tokenizer.encode(form) for form in forms]
    return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def answers_record(index: int, split: str, questions: int, boxes: int = 1) -> Record:
    """The record of a scene for measuring: a caption, places and some questions, drawn by the scene's number."""
    return scenes_record(
        scene(split, index).example(),
        questions=questions,
        boxes=boxes,
        kinds={"reading": 0.0},
        rng=np.random.default_rng(index),
    )
