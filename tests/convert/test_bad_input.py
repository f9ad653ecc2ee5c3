"""Each bad input is one clear line, and nothing is written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from convert_helpers import Folder, random_checkpoint

from smoljax.convert import native
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import convert
from smoljax.convert.hf import load_hf, save_hf
from smoljax.convert.native import load_native, save_native
from smoljax.convert.tensor_files import all_finite
from smoljax.convert.write_aside import write_aside
from smoljax.errors import SmoljaxError

HEAD = "lm_head.weight"
# Orbax closes its event loop while a read that failed still has something to say.
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DOWN = "model.text_model.layers.1.mlp.down_proj.weight"


def refused(source: Path, *words: str) -> None:
    """Converting `source` fails with one line that has all `words`, and leaves nothing behind."""
    destination = source.parent / "destination"
    before = sorted(source.parent.iterdir())
    for to in ("native", "hf"):
        with pytest.raises(SmoljaxError) as error:
            convert(source, destination, to=to)
        message = str(error.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message
    assert sorted(source.parent.iterdir()) == before


def test_truncated_file(folder: Folder):
    data = folder.weights.read_bytes()
    for cut in (3, 100, len(data) // 2, len(data) - 1):
        folder.weights.write_bytes(data[:cut])
        refused(folder.path, "model.safetensors", "fetch it again")
    folder.weights.write_bytes(data + b"x")
    refused(folder.path, "model.safetensors", "fetch it again")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
    ],
)
def test_corrupt_header(folder: Folder, header):
    folder.weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    refused(folder.path, "model.safetensors", "truncated or no safetensors file")


def test_header_length_out_of_this_world(folder: Folder):
    folder.weights.write_bytes(b"\xff" * 64)
    refused(folder.path, "truncated or no safetensors file")


def test_wrong_folder(tmp_path, folder: Folder):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    refused(tmp_path / "photos", "photos", "cat.png")
    with pytest.raises(SmoljaxError, match=r"no config\.json.*cat\.png"):
        load_hf(tmp_path / "photos")
    with pytest.raises(SmoljaxError, match="no such folder"):
        load_hf(tmp_path / "nowhere")
    refused(tmp_path / "nowhere", "no such file or folder")
    folder.weights.unlink()
    refused(folder.path, "no weights", "config.json")


def test_config_is_no_json(folder: Folder):
    folder.config.write_text("{")
    refused(folder.path, "config.json", "no JSON")
    folder.config.write_text("[" * 100_000)
    refused(folder.path, "config.json", "no JSON")
    folder.config.write_text("[]")
    refused(folder.path, "config.json", "JSON object")


def test_missing_extra_and_misshapen_names_are_all_listed(folder: Folder):
    tensors = folder.tensors()
    del tensors[HEAD], tensors["model.connector.modality_projection.proj.weight"]
    tensors["model.extra.weight"] = np.zeros((2, 2), np.float32)
    tensors[DOWN] = tensors[DOWN].T
    folder.write(tensors)
    refused(
        folder.path,
        f"missing {HEAD} [320, 32]",
        "missing model.connector.modality_projection.proj.weight [32, 96]",
        "left over model.extra.weight [2, 2]",
        f"mis-shaped {DOWN} is [64, 32], must be [32, 64]",
        "4 tensor name(s)",
    )


def test_duplicates(folder: Folder):
    tensors = folder.tensors()
    tensors[DOWN.removeprefix("model.")] = tensors[DOWN]
    folder.write(tensors)
    refused(folder.path, "duplicate", f"both mean {DOWN}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nan_weights(make_folder, value, dtype):
    folder = make_folder(dtype=dtype)
    tensors = folder.tensors()
    tensors[HEAD][7, 3] = tensors[DOWN][0, 0] = value
    folder.write(tensors)
    refused(folder.path, "NaN or infinite values in 2 tensor(s)", HEAD, DOWN)


def test_nan_params_are_not_written(tmp_path, checkpoint: Checkpoint):
    checkpoint.params["embedding"]["table"][0, 0] = np.nan
    for save in (save_hf, save_native):
        with pytest.raises(SmoljaxError, match="embedding/table"):
            save(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_all_finite_sees_every_corner():
    array = np.zeros((3, 5_000_000), np.float32)
    assert all_finite(array)
    assert all_finite(np.array(np.finfo(np.float32).max))
    array[2, -1] = np.nan
    assert not all_finite(array)
    assert not all_finite(array.T)
    assert not all_finite(array[1:, 1::2])


def test_quantised_weights(folder: Folder):
    tensors = folder.tensors()
    tensors[HEAD] = tensors[HEAD].astype(np.int8)
    folder.write(tensors)
    refused(folder.path, "stored as none of", f"{HEAD} (I8)")


def test_params_that_do_not_fit_are_not_written(tmp_path, checkpoint: Checkpoint):
    del checkpoint.params["embedding"]["head"]
    checkpoint.params["extra"] = np.zeros(3, np.float32)
    for save in (save_hf, save_native):
        with pytest.raises(SmoljaxError, match=r"missing embedding/head.*left over extra"):
            save(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, folder: Folder):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file", "hf"):
        with pytest.raises(SmoljaxError, match=name):
            convert(folder.path, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "hf"]
    (tmp_path / "empty").mkdir()
    convert(folder.path, tmp_path / "empty")
    assert load_native(tmp_path / "empty").num_tensors == 68


def sharded(tmp_path: Path) -> tuple[Path, Path]:
    save_hf(random_checkpoint(), tmp_path / "hf", max_shard_bytes=100_000)
    return tmp_path / "hf", tmp_path / "hf" / "model.safetensors.index.json"


def test_missing_shard(tmp_path):
    folder, _ = sharded(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "missing shard(s) model-00002-of-00003.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.update({"ghost.weight": "model-00001-of-00003.safetensors"}),
            "no shard holds: ghost.weight",
        ),
        (lambda m: m.pop(HEAD), f"does not name tensor(s) that its shards hold: {HEAD}"),
        (lambda m: m.update({HEAD: "../../etc/passwd"}), "outside its folder"),
    ],
)
def test_index_that_disagrees(tmp_path, change, words):
    folder, index = sharded(tmp_path)
    data = json.loads(index.read_bytes())
    change(data["weight_map"])
    index.write_text(json.dumps(data))
    refused(folder, words)


def test_index_without_map(tmp_path):
    folder, index = sharded(tmp_path)
    index.write_text("{}")
    refused(folder, "no weight_map")


def test_pickle_without_torch(folder: Folder, monkeypatch):
    folder.weights.unlink()
    (folder.path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(folder.path, 'pip install "smoljax[torch]"')


def test_unknown_format_version(tmp_path, checkpoint: Checkpoint):
    save_native(checkpoint, tmp_path / "n")
    path = tmp_path / "n" / "smoljax.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format_version": 99}))
    refused(tmp_path / "n", "native format 99", "convert it again")
    path.write_text("{}")
    refused(tmp_path / "n", "native format None")
    path.write_text('{"format_version": 1}')
    refused(tmp_path / "n", "incomplete")
    path.write_text("{")
    refused(tmp_path / "n", "no JSON")


@UNRAISABLE
def test_damaged_native_folder(tmp_path, checkpoint: Checkpoint):
    save_native(checkpoint, tmp_path / "n")
    files = [path for path in (tmp_path / "n" / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[: len(data) // 2])
    refused(tmp_path / "n", "damaged", str(largest.relative_to(tmp_path / "n")))
    largest.unlink()
    refused(tmp_path / "n", "damaged", str(largest.relative_to(tmp_path / "n")), "missing")
    largest.write_bytes(b"\0" * len(data))
    refused(tmp_path / "n", "damaged", str(largest.relative_to(tmp_path / "n")))
    described = next(path for path in files if path.name == "zarr.json")
    kept = described.read_bytes()
    described.write_bytes(b"{")
    with pytest.raises(SmoljaxError, match="damaged"):
        load_native(tmp_path / "n")
    described.write_bytes(b"{" + b" " * (len(kept) - 1))
    with pytest.raises(SmoljaxError, match="damaged: params cannot be read"):
        load_native(tmp_path / "n", verify=False)
    described.write_bytes(kept)
    largest.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    refused(tmp_path / "n", "damaged", str(largest.relative_to(tmp_path / "n")), "has not the content")


@UNRAISABLE
def test_native_config_that_does_not_fit(tmp_path, checkpoint: Checkpoint):
    save_native(checkpoint, tmp_path / "n")
    path = tmp_path / "n" / "smoljax.json"
    data = json.loads(path.read_bytes())
    data["config"]["text"]["intermediate_size"] = 65
    path.write_text(json.dumps(data))
    refused(tmp_path / "n", str(tmp_path / "n"))


def test_failure_before_the_rename_leaves_nothing(tmp_path, folder: Folder, monkeypatch):
    def fail(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "sums_of", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(folder.path, tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


KILLED = """
import os, signal, sys, time
from smoljax.convert import native
from smoljax.convert.convert import convert
def stop(folder):
    print(folder, flush=True)
    time.sleep(60)
native.sums_of = stop
convert(sys.argv[1], sys.argv[2])
"""


def test_killed_conversion_leaves_no_half_folder(tmp_path, folder: Folder):
    """SIGKILL when all is written but the name: no folder; the next run removes what was left aside."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder.path), str(tmp_path / "n")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    scratch = Path(process.stdout.readline().strip())
    assert (scratch / "params").is_dir()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "n").exists()
    assert scratch.is_dir()
    convert(folder.path, tmp_path / "n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "n"]
    assert load_native(tmp_path / "n").num_tensors == 68


def test_another_run_s_scratch_folder_is_left_alone(tmp_path):
    with write_aside(tmp_path / "a") as first:
        other = tmp_path / first.name.replace(str(os.getpid()), str(os.getppid()))
        other.mkdir()
        with write_aside(tmp_path / "b"):
            pass
        assert first.is_dir()
    assert other.is_dir()
    assert (tmp_path / "a").is_dir()
    assert time.time() - (tmp_path / "a").stat().st_mtime < 60
