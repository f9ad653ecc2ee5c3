"""Storage that fails: a clear error, and the last good checkpoint untouched."""

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import smoljax
from smoljax.errors import SmoljaxError
from smoljax.training.config import CheckpointConfig
from smoljax.training.run import train


def digest(folder):
    """Of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def stopped(toy_config, tmp_path):
    """A run with whole checkpoints of steps 2 and 4."""
    config = toy_config(checkpoint=CheckpointConfig(every=2, keep_last=2, keep_best=0))
    train(config, tmp_path / "run", show=False, stop_after=4)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4"]
    return config, tmp_path / "run"


def test_a_damaged_checkpoint_is_named_and_the_one_before_still_serves(stopped):
    config, workdir = stopped
    good = digest(workdir / "checkpoints" / "2")
    chunks = [path for path in (workdir / "checkpoints" / "4" / "state").rglob("*") if path.is_file()]
    chunk = max(chunks, key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    chunk.write_bytes(bytes(content))
    with pytest.raises(SmoljaxError, match=r"cannot read checkpoint 4: .*remove .*/checkpoints/4 to go on"):
        train(config, workdir, show=False)
    assert digest(workdir / "checkpoints" / "2") == good
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert train(config, workdir, show=False).finished


def test_a_checkpoint_that_was_cut_off_does_not_count(stopped):
    config, workdir = stopped
    # What a kill leaves behind: Orbax writes beside, and renames when all is there.
    half = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "4", half)
    (half / "state" / "_METADATA").unlink()
    assert train(config, workdir, show=False).finished


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(toy_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run"):
        train(toy_config(), tmp_path / "file" / "run", show=False)
    if Path("/sys").is_dir():  # even root cannot write there
        with pytest.raises(OSError, match="/sys/run"):
            train(toy_config(), Path("/sys/run"), show=False)


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_last_good_checkpoint(colours, stopped):
    _, workdir = stopped
    good = digest(workdir / "checkpoints")
    runner = Path(__file__).with_name("runner.py")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
    }
    other = workdir.parent / "full"
    command = [sys.executable, str(runner), str(colours), str(other), "1", "steps=6", "stop=2"]
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    good = digest(other / "checkpoints" / "2")

    def little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        command[:-1], env=environment, check=False, capture_output=True, text=True, preexec_fn=little_room
    )
    assert done.returncode == 1
    # Orbax's threads say more, before and after.
    assert re.search(r"cannot write .*checkpoint.*; the last whole checkpoint is of step 2", done.stderr)
    assert digest(other / "checkpoints" / "2") == good
