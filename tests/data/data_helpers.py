"""Examples and records for the tests of the data pipeline."""

import functools
import io

import numpy as np
from PIL import Image

from smoljax.data.mappings import find_mapping
from smoljax.data.records import Record, ask
from smoljax.data.sources import MappedSource
from smoljax.processing.testing import pattern_picture

SHAPES = ("circle", "square", "star", "ring")
KINDS = ("existence", "count", "colour", "relation")


@functools.lru_cache
def png(width=96, height=96, shade=0):
    """A picture as encoded bytes; `shade` tells pictures apart."""
    picture = np.asarray(pattern_picture(width, height)).copy()
    picture[0, 0] = shade
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()


def scenes_example(index=0, columns=True):
    """What TFDS gives for one example of `scenes`: bytes for texts, a dict of lists for a list of dicts."""
    objects = [
        {"shape": b"circle", "colour": b"red", "size": b"small", "texture": b"plain"}
        | {"box": np.array([8, 16, 40, 48], np.int32), "reference": b"the red circle"},
        {"shape": b"ring", "colour": b"blue", "size": b"large", "texture": b"dotted"}
        | {"box": np.array([56, 56, 80, 96], np.int32), "reference": b""},
    ]
    questions = [
        {"question": f"Is there a {shape} in {index}?".encode(), "answer": b"yes", "kind": kind.encode()}
        | {"unseen_pair": False}
        for shape in SHAPES
        for kind in KINDS
    ]
    for number, item in enumerate(questions):
        item["question"] = f"Question {number} of {index}?".encode()
    cells = np.zeros((12, 12), np.uint8)
    cells[2:6, 1:5], cells[7:12, 7:10] = 1, 2
    characters = np.zeros((12, 12), np.uint8)
    characters[0, 3:6] = (3, 1, 20)
    return {
        "id": f"scene-{index}".encode(),
        "image": png(shade=index % 256),
        "captions": [f"Caption {number} of {index}.".encode() for number in range(3)],
        "objects": _transpose(objects) if columns else objects,
        "questions": _transpose(questions) if columns else questions,
        "cells": cells,
        "characters": characters,
    }


def _transpose(rows):
    return {key: [row[key] for row in rows] for key in rows[0]}


def scenes_source(count=10, on_error="raise", seed=0, **options):
    """A source of `count` scenes in memory."""
    return MappedSource(
        "scenes",
        count,
        scenes_example,
        find_mapping("scenes", "scenes", options),
        on_error=on_error,
        seed=seed,
    )


_picture = functools.lru_cache(pattern_picture)


def number_record(number, width=40, height=40, words=3):
    """A record whose question tells its number; `width` and `height` decide its tiles."""
    answer = " ".join(["word"] * words)
    return Record(
        id=f"record-{number}",
        images=(_picture(width, height),),
        conversations=(ask(f"Number {number}?", answer),),
    )


def number_source(count=10, make=number_record, name="numbers", on_error="raise"):
    """A source of such records in memory."""
    return MappedSource(name, count, int, lambda number, rng: make(number), on_error=on_error)
