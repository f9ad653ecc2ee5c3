"""A data set of coloured pictures, and runs of the tiny model on it."""

import json
import os

import jax
import pytest
from PIL import Image

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.processing.testing import tiny_processor
from smoljax.training.config import CheckpointConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig


def write_colours(folder, count=40):
    """`count` pictures whose redness is the answer, as a .jsonl file."""
    lines = []
    for index in range(count):
        name = f"{index}.png"
        Image.new("RGB", (40, 30), (index * 6, 255 - index * 6, 128)).save(folder / name)
        user = [{"type": "image"}, {"type": "text", "text": "How red?"}]
        lines.append(
            json.dumps(
                {
                    "id": str(index),
                    "images": [name],
                    "messages": [
                        {"role": "user", "content": user},
                        {"role": "assistant", "content": str(index // 10)},
                    ],
                }
            )
        )
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    tiny_processor().save(folder / "processor")
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """The same few programs are compiled in many tests and processes: they share a cache of this session's."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        os.environ.pop(name.upper())


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def toy_config(colours):
    """Makes a config of the tiny model on the coloured pictures; keyword arguments replace fields."""

    def make(**fields):
        data = DataConfig(
            (SourceConfig(str(colours / "data.jsonl")),),
            batch_size=8,
            sequence_length=48,
            max_tiles=1,
            split=False,
            loss_on="answers",
        )
        given = {
            "name": "toy",
            "model": ModelConfig(presets.tiny(), str(colours / "processor"), scan_layers=True),
            "data": data,
            "objectives": (NextToken(),),
            "steps": 8,
            "optimizer": OptimizerConfig(lr=3e-3, warmup_steps=2),
            "checkpoint": CheckpointConfig(every=4),
            "log_every": 1,
        }
        return TrainConfig(**{**given, **fields})

    return make
