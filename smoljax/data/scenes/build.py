"""The TFDS builder `scenes`, written as ArrayRecord without TensorFlow."""

import functools
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from smoljax.data.scenes.scene import scene
from smoljax.data.scenes.vocabulary import CELLS, SIDE
from smoljax.errors import SmoljaxError, UsageError
from smoljax.paths import smoljax_cache

VERSION = "1.0.0"
CONFIGS: dict[str, dict[str, int]] = {
    "full": {"train": 60_000, "validation": 2_000, "test": 2_000, "test_compositional": 2_000},
    "tiny": {"train": 64, "validation": 16, "test": 16, "test_compositional": 16},
}
"""Examples of each split, by config."""

_CHUNK = 64
_PROCESSES = 2


def open_scenes(config: str = "full", data_dir: str | Path | None = None, *, seed: int = 0) -> Any:
    """The builder, its data written: the first call draws them (`full`: minutes; a bar on stderr).

    Args:
      config: "full" or "tiny".
      data_dir: the TFDS folder; default `datasets/` of `smoljax_cache()`.
      seed: of the data set. The written files do not tell seeds apart, so another seed wants a `data_dir` of
        its own.

    Returns:
      A `tfds.core.DatasetBuilder`; `builder.as_data_source(split)` gives random access to the examples.

    Raises:
      UsageError: no such config.
      SmoljaxError: tensorflow_datasets is missing, or a process that draws broke off.
    """
    if config not in CONFIGS:
        raise UsageError(f"scenes has no config {config!r}; it has {', '.join(CONFIGS)}")
    folder = Path(data_dir) if data_dir is not None else smoljax_cache() / "datasets"
    builder = _builder_class()(
        config=config, data_dir=os.fspath(folder), file_format="array_record", seed=seed
    )
    if not Path(builder.data_dir).exists():
        _prepare(builder)
    return builder


def _prepare(builder: Any) -> None:
    """`download_and_prepare` with equal bytes for equal data, and without what TFDS itself says on stdout."""
    from tensorflow_datasets.core import example_serializer
    from tensorflow_datasets.core.utils import tqdm_utils

    serializer, shown = example_serializer.ExampleSerializer, tqdm_utils._active
    plain = serializer.serialize_example

    def ordered(self: Any, example: Any) -> bytes:
        # Protocol Buffers write a map's entries in an order that changes from process to process.
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    try:
        serializer.serialize_example = ordered
        tqdm_utils.disable_progress_bar()
        with redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        serializer.serialize_example = plain
        tqdm_utils._active = shown


def generate(config: str, split: str, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, example) of a split in order; large ones are drawn by two processes."""
    count = CONFIGS[config][split]
    with _progress(f"scenes/{config} {split}", count) as advance:
        if count <= 2 * _CHUNK:
            for index in range(count):
                yield index, scene(split, index, seed).example()
                advance(1)
            return
        index = 0
        for chunk in _in_processes(split, count, seed):
            for example in chunk:
                yield index, example
                index += 1
            advance(len(chunk))


def _in_processes(split: str, count: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Chunk k is the work of process k mod 2; each has one chunk in hand and one waiting."""
    jobs = [(split, at, min(at + _CHUNK, count), seed) for at in range(0, count, _CHUNK)]
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker()) for _ in range(_PROCESSES)]
        given = 0
        for done in range(len(jobs)):
            while given < min(len(jobs), done + 2 * _PROCESSES):
                _give(workers[given % _PROCESSES], jobs[given])
                given += 1
            yield _take(workers[done % _PROCESSES])


class _worker:  # noqa: N801
    """A running `scenes.worker`, killed on the way out."""

    def __enter__(self) -> "subprocess.Popen[bytes]":
        root = Path(__file__).resolve().parents[3]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smoljax.data.scenes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def _give(worker: "subprocess.Popen[bytes]", job: tuple[str, int, int, int]) -> None:
    assert worker.stdin is not None
    try:
        pickle.dump(job, worker.stdin)
        worker.stdin.flush()
    except BrokenPipeError as error:
        raise _broken(job[0]) from error


def _take(worker: "subprocess.Popen[bytes]") -> list[dict[str, Any]]:
    assert worker.stdout is not None
    try:
        return pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise _broken("a split") from error


def _broken(what: str) -> SmoljaxError:
    return SmoljaxError(f"scenes: a process drawing {what} ended early; its own message stands above")


class _progress:  # noqa: N801
    """A rich bar on stderr; entering gives the function that advances it."""

    def __init__(self, name: str, total: int):
        self.name, self.total = name, total

    def __enter__(self) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.bar.start()
        task = self.bar.add_task(self.name, total=self.total)
        return functools.partial(self.bar.advance, task)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


@functools.cache
def _builder_class() -> type:
    """Made on first use: TFDS is heavy, and of the extra `data`."""
    try:
        import tensorflow_datasets as tfds
        from etils import epath
    except ImportError as error:
        raise SmoljaxError("scenes needs tensorflow_datasets: pip install 'smoljax[data]'") from error
    features = tfds.features

    class Scenes(tfds.core.GeneratorBasedBuilder):
        """Drawn scenes with captions, questions, boxes and dense labels."""

        name = "scenes"
        # TFDS would find it by way of importlib_resources, which it does not install.
        code_path = epath.Path(__file__)
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name=name, description=f"{sizes['train']} pictures to train on.")
            for name, sizes in CONFIGS.items()
        ]

        def __init__(self, *, seed: int = 0, **rest: Any):
            self._seed = seed
            super().__init__(**rest)

        def _info(self) -> Any:
            box = features.Tensor(shape=(4,), dtype=np.int32)
            dense = features.Tensor(shape=(CELLS, CELLS), dtype=np.uint8)
            words = {word: features.Text() for word in ("shape", "colour", "size", "texture", "reference")}
            asked = {word: features.Text() for word in ("question", "answer", "kind")}
            return tfds.core.DatasetInfo(
                builder=self,
                description="Pictures of 1 to 5 drawn objects with captions, questions and labels.",
                features=features.FeaturesDict(
                    {
                        "id": features.Text(),
                        "image": features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                        "background": features.Text(),
                        "objects": features.Sequence({**words, "box": box}),
                        "text": features.Text(),
                        "text_box": box,
                        "captions": features.Sequence(features.Text()),
                        "facts": features.Sequence(features.Text()),
                        "questions": features.Sequence({**asked, "unseen_pair": np.bool_}),
                        "cells": dense,
                        "characters": dense,
                    }
                ),
                license="Apache-2.0",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            assert self.builder_config is not None
            return {split: self._generate_examples(split) for split in CONFIGS[self.builder_config.name]}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            assert self.builder_config is not None
            return generate(self.builder_config.name, split, self._seed)

    return Scenes
