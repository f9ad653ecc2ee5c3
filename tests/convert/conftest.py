"""Fixtures of the converter's tests; helpers are in convert_helpers.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from convert_helpers import Folder, random_checkpoint

from smoljax.config import SmolVLMConfig
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.hf import save_hf


@pytest.fixture
def checkpoint() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Folder]:
    """Makes a folder for a config: `make_folder(presets.tiny(), dtype="bfloat16")`."""

    def make(config: SmolVLMConfig | None = None, dtype: str = "float32", name: str = "hf") -> Folder:
        save_hf(random_checkpoint(config, dtype), tmp_path / name)
        return Folder(tmp_path / name)

    return make


@pytest.fixture
def folder(make_folder: Callable[..., Folder]) -> Folder:
    return make_folder()
