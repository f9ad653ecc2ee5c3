"""Random checkpoints and folders for the converter's tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from smoljax import presets
from smoljax.config import SmolVLMConfig
from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.safetensors_file import open_safetensors, write_safetensors

GOLDEN = Path(__file__).parent / "golden"
SMALL_FILES = {"tokenizer.json": b'{"a": "\xc3\xa9"}', "chat_template.jinja": b"{{ x }}\n"}


def random_checkpoint(
    config: SmolVLMConfig | None = None, dtype: str = "float32", seed: int = 0
) -> Checkpoint:
    """A checkpoint of random weights, born here (it has no config.json yet)."""
    config = config or presets.tiny()
    rng = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    params: dict[str, Any] = {}
    for entry in names.expand(config):
        set_leaf(params, entry.ours, rng.standard_normal(entry.our_shape).astype(np.float32).astype(kind))
    return Checkpoint(config, params, dict(SMALL_FILES), source="random")


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder's one safetensors file, in memory."""
    return {name: t.read().copy() for name, t in open_safetensors(folder / "model.safetensors").items()}


def write(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Replaces a folder's one safetensors file."""
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})


class Folder:
    """A folder in the reference's layout that a test changes before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.weights = path / "model.safetensors"

    def tensors(self) -> dict[str, np.ndarray]:
        return stored(self.path)

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        write(self.path, tensors)

    def rename(self, rename: Callable[[str], str]) -> None:
        self.write({rename(name): array for name, array in self.tensors().items()})

    def edit_config(self, change: Callable[[dict[str, Any]], Any]) -> None:
        data = json.loads(self.config.read_bytes())
        change(data)
        self.config.write_text(json.dumps(data))


def tiny_text(*, tied: bool = True) -> SmolVLMConfig:
    """A text-only model of the size of `presets.tiny()`'s decoder."""
    text = presets.tiny().text
    return SmolVLMConfig(
        vision=None,
        text=text,
        scale_factor=None,
        image_token_id=None,
        tie_embeddings=tied,
        model_type="llama",
    )


def flat(params: dict[str, Any]) -> dict[str, bytes]:
    """Path → dtype, shape and bytes, for byte-equality."""
    return {
        path: f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
        for path, leaf in iterate_leaves(params)
    }
