"""Runs in processes of their own: exact resume over SIGKILL, other numbers of devices, SIGTERM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import smoljax
from smoljax.convert.convert import load_checkpoint

RUNNER = Path(__file__).with_name("runner.py")


def start(colours, workdir, devices, *options, **streams):
    """A run in a process of its own."""
    command = [sys.executable, str(RUNNER), str(colours), str(workdir), str(devices), *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **streams)


def launch(colours, workdir, devices, *options):
    """How such a run ended."""
    with start(colours, workdir, devices, *options, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def weights(workdir):
    params = load_checkpoint(workdir / "model", "float32").params
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope="module")
def unbroken(colours, tmp_path_factory):
    """Eight steps on one device, in one go."""
    workdir = tmp_path_factory.mktemp("unbroken")
    assert launch(colours, workdir, 1).returncode == 0
    return workdir


def test_a_run_killed_and_resumed_equals_one_that_was_not_bit_for_bit(colours, tmp_path, unbroken):
    killed = launch(colours, tmp_path, 1, "kill=5")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    resumed = launch(colours, tmp_path, 1)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path) == losses(unbroken)
    ours, theirs = weights(tmp_path), weights(unbroken)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_and_take_over_its_checkpoint(colours, tmp_path, unbroken):
    together = launch(colours, tmp_path / "eight", 8, "mesh.fsdp=4")
    assert together.returncode == 0, together.stderr
    ours, theirs = losses(tmp_path / "eight"), losses(unbroken)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)
    first, second = weights(tmp_path / "eight"), weights(unbroken)
    for name in second:
        np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)
    # Half on one device, half on eight.
    assert launch(colours, tmp_path / "moved", 1, "stop=4").returncode == 0
    moved = launch(colours, tmp_path / "moved", 8, "mesh.fsdp=2")
    assert moved.returncode == 0, moved.stderr
    found = losses(tmp_path / "moved")
    assert [found[step] for step in range(1, 5)] == [theirs[step] for step in range(1, 5)]
    np.testing.assert_allclose(list(found.values()), list(theirs.values()), rtol=2e-4)


@pytest.fixture(scope="module")
def halfway(colours, tmp_path_factory):
    """Four of the eight steps on eight devices: fsdp 4, tensor 2."""
    workdir = tmp_path_factory.mktemp("halfway")
    done = launch(colours, workdir, 8, "stop=4", "mesh.fsdp=4", "mesh.tensor=2")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mesh"), [(1, ""), (2, "fsdp=2"), (4, "sequence=2"), (8, "data=4 fsdp=2"), (8, "tensor=8")]
)
def test_a_checkpoint_goes_on_on_other_devices_and_meshes(
    colours, tmp_path, unbroken, halfway, devices, mesh
):
    shutil.copytree(halfway, tmp_path / "run")
    told = [f"mesh.{part}" for part in mesh.split()]
    done = launch(colours, tmp_path / "run", devices, *told)
    assert done.returncode == 0, done.stderr
    ours, theirs = losses(tmp_path / "run"), losses(unbroken)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)
    first, second = weights(tmp_path / "run"), weights(unbroken)
    for name in second:
        np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_sigterm_saves_and_stops(colours, tmp_path):
    process = start(colours, tmp_path, 1, "steps=100000", "checkpoint.every=100000")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (tmp_path / "metrics.jsonl").exists() and losses_so_far(tmp_path) >= 3
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    step = int(out.split()[0])
    assert 3 <= step < 100000
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert max(losses(tmp_path)) == step


def losses_so_far(workdir):
    return (workdir / "metrics.jsonl").read_text().count("\n")
