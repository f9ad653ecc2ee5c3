"""Examples → rows of fixed size, one or several in each, and rows → the arrays of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smoljax.data.encode import Example
from smoljax.errors import SmoljaxError

#: Names → arrays, and "patches" → {name: array}.
Batch = dict[str, Any]


@dataclass(frozen=True)
class RowShape:
    """The static sizes of a row.

    Attributes:
      tokens: T.
      tiles: I.
      pairs: M, contrastive pairs.
      tile_size: pixels of a tile's side; 0 for a text-only model, whose batches have no pictures.
      pad_id: token on padding.
      patches: label's name → P, patches of a tile.
      branches: whether examples may have branches; False leaves branch_ids out of batches.
    """

    tokens: int
    tiles: int
    pairs: int
    tile_size: int
    pad_id: int
    patches: Mapping[str, int] = field(default_factory=dict)
    branches: bool = True

    def check(self, example: Example) -> None:
        """SmoljaxError for an example that has no place in an empty row."""
        if example.tokens > self.tokens:
            raise SmoljaxError(
                f"{example.tokens} tokens, more than the {self.tokens} of a row; raise sequence_length or shrink "
                "its pictures"
            )
        if example.tiles > self.tiles:
            raise SmoljaxError(
                f"{example.tiles} tiles, more than the {self.tiles} of a row; raise max_tiles, or lower "
                "longest_edge, or set split to false"
            )
        if not self.branches and example.branch_ids.any():
            raise SmoljaxError(
                "several conversations (or a caption) about one picture, but the data config says branches=False"
            )
        if example.pair_image >= 0 and not self.pairs:
            raise SmoljaxError("a contrastive pair, but max_pairs is 0")
        for name, labels in example.patches.items():
            if self.patches.get(name) != len(labels):
                raise SmoljaxError(
                    f"{len(labels)} labels {name!r} but {self.patches.get(name, 0)} in other records; dense labels "
                    "must be of one size"
                )


class Row:
    """Examples that share a row, and how much room they leave."""

    def __init__(self, shape: RowShape) -> None:
        self._shape = shape
        self.examples: list[Example] = []
        self.places: list[int] = []  # where in the stream each was found
        self.tokens = self.tiles = self.pairs = 0

    def fits(self, example: Example) -> bool:
        """Whether there is room for one more."""
        return (
            self.tokens + example.tokens <= self._shape.tokens
            and self.tiles + example.tiles <= self._shape.tiles
            and self.pairs + (example.pair_image >= 0) <= self._shape.pairs
        )

    def fullness(self) -> float:
        """The largest used share of tokens, tiles and pairs, 0 to 1: a row is full when any of them is."""
        used = (
            (self.tokens, self._shape.tokens),
            (self.tiles, self._shape.tiles),
            (self.pairs, self._shape.pairs),
        )
        return max(count / limit for count, limit in used if limit)

    def add(self, place: int, example: Example) -> None:
        """Puts an example that fits behind the others."""
        self.examples.append(example)
        self.places.append(place)
        self.tokens += example.tokens
        self.tiles += example.tiles
        self.pairs += example.pair_image >= 0


class Packer:
    """Greedy first fit in a window: an example goes to the oldest open row that has room.

    Where none has, a new row is opened; with `window` rows open already, the fullest is closed first. The
    greedy rule is that of the training code of SmolVLM; that one lets examples of a row see each other, here
    `segment_ids` keeps them apart.
    """

    def __init__(self, shape: RowShape, window: int) -> None:
        self._shape = shape
        self._window = window
        self.rows: list[Row] = []

    def put(self, place: int, example: Example) -> Row | None:
        """Takes the next example (`RowShape.check`ed); gives a row when one is closed by it."""
        closed = None
        row = next((row for row in self.rows if row.fits(example)), None)
        if row is None:
            if len(self.rows) == self._window:
                closed = max(self.rows, key=Row.fullness)  # the oldest of equally full ones
                self.rows.remove(closed)
            row = Row(self._shape)
            self.rows.append(row)
        row.add(place, example)
        return closed


def pack(examples: Iterator[Example], shape: RowShape, window: int = 8) -> Iterator[Row]:
    """All rows of a finite stream, the ones still open at its end last."""
    packer = Packer(shape, window)
    for place, example in enumerate(examples):
        shape.check(example)
        if (row := packer.put(place, example)) is not None:
            yield row
    yield from packer.rows


def batch_arrays(rows: Sequence[Sequence[Example]], shape: RowShape) -> Batch:
    """The arrays of a batch; B rows, zero (False, -1) where nothing stands.

    Args:
      rows: the examples of each row, which fit it.
      shape: the sizes.

    Returns:
      input_ids [B, T] int32; loss_mask [B, T] bool; segment_ids [B, T] int32, 1, 2, … and 0 on padding;
      branch_ids [B, T] int32 (absent where the shape has no branches); positions [B, T] int32; pixel_values
      [B, I, 3, h, w] float32; tile_mask [B, I] bool; pair_image, pair_text [B, M] int32, places in the row, -1 = no
      pair; patches {name: [B, I, P] int32, −1 on padding tiles and pictures without labels}, {} without dense labels.
      A text-only model's batches have no pixel_values and tile_mask.
    """
    count = len(rows)
    tokens, tiles, size = shape.tokens, shape.tiles, shape.tile_size
    batch: Batch = {
        "input_ids": np.full((count, tokens), shape.pad_id, np.int32),
        "loss_mask": np.zeros((count, tokens), bool),
        "segment_ids": np.zeros((count, tokens), np.int32),
        "branch_ids": np.zeros((count, tokens), np.int32),
        "positions": np.zeros((count, tokens), np.int32),
        "pair_image": np.full((count, shape.pairs), -1, np.int32),
        "pair_text": np.full((count, shape.pairs), -1, np.int32),
    }
    if not shape.branches:
        del batch["branch_ids"]
    if size:
        batch["pixel_values"] = np.zeros((count, tiles, 3, size, size), np.float32)
        batch["tile_mask"] = np.zeros((count, tiles), bool)
    labels = {name: np.full((count, tiles, patches), -1, np.int32) for name, patches in shape.patches.items()}
    for number, row in enumerate(rows):
        _fill(
            {name: array[number] for name, array in batch.items()},
            {name: array[number] for name, array in labels.items()},
            row,
        )
    return {**batch, "patches": labels}


def _fill(target: Batch, labels: dict[str, np.ndarray], examples: Sequence[Example]) -> None:
    token = tile = pair = segment = 0
    for example in examples:
        end = token + example.tokens
        target["input_ids"][token:end] = example.input_ids
        target["loss_mask"][token:end] = example.loss_mask
        target["segment_ids"][token:end] = example.segments + (segment + 1)
        if "branch_ids" in target:
            target["branch_ids"][token:end] = example.branch_ids
        target["positions"][token:end] = example.positions
        if example.tiles:
            target["pixel_values"][tile : tile + example.tiles] = example.pixel_values
            target["tile_mask"][tile : tile + example.tiles] = True
        if example.pair_image >= 0:
            target["pair_image"][pair] = token + example.pair_image
            target["pair_text"][pair] = token + example.pair_text
            pair += 1
        for name, values in example.patches.items():
            labels[name][tile] = values
        token, tile = end, tile + example.tiles
        segment += int(example.segments[-1]) + 1
