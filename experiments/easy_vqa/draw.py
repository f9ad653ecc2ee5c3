"""The mapping of training: the questions of a picture in another order each epoch, the picture mirrored or not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import ImageOps

from smoljax.data.jsonl import jsonl_record
from smoljax.data.records import Record
from smoljax.processing.images import open_image


def drawn(example: Mapping[str, Any], *, mirror: bool = True, rng: np.random.Generator) -> Record:
    """A line of train.jsonl, its conversations shuffled; those that no longer fit the row are left out there.

    Args:
      example: from `smoljax.data.jsonl.JsonLines`.
      mirror: turn left and right round, every other time: no question asks for a side.
      rng: decides both.
    """
    record = jsonl_record(example)
    order = rng.permutation(len(record.conversations))
    images = record.images
    if mirror and rng.random() < 0.5:
        images = tuple(ImageOps.mirror(open_image(image)) for image in images)
    return replace(
        record,
        images=images,
        conversations=tuple(record.conversations[place] for place in order),
        meta={"kinds": [record.meta["kinds"][place] for place in order]},
    )
