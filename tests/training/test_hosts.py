"""Several processes as hosts of one run, over the loopback: the same losses, stopping together, a host that is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import smoljax
from smoljax.errors import SmoljaxError, UsageError
from smoljax.training.hosts import HostsConfig, join

RUNNER = Path(__file__).with_name("runner.py")
# Rows are dealt out one by one, so hosts see together what one host sees.
COMMON = ("data.pack=false", "data.sequence_length=48", "data.max_tiles=1", "noise=0.0")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(colours, workdir, count, *options, devices=4):
    """The processes of a run of `count` hosts that share `devices` devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
    }
    port = free_port()
    hosts = []
    for index in range(count):
        told = [f"hosts={port},{count},{index}"] if count > 1 else []
        command = [sys.executable, str(RUNNER), str(colours), str(workdir), str(devices // count), *told]
        log = (workdir.parent / f"{workdir.name}.{index}.log").open("w+")
        process = subprocess.Popen([*command, *COMMON, *options], env=environment, stdout=log, stderr=log)
        hosts.append((process, log))
    return hosts


def finish(hosts, timeout=280):
    """Return codes and logs."""
    deadline = time.monotonic() + timeout
    found = []
    for process, log in hosts:
        process.wait(max(1, deadline - time.monotonic()))
        log.seek(0)
        found.append((process.returncode, log.read()))
    return found


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def wait_for(workdir, steps, timeout=200):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and len(losses(workdir)) >= steps:
            return
        time.sleep(0.1)
    raise AssertionError(f"{workdir}: {steps} steps not reached")


@pytest.fixture(scope="module")
def alone(colours, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((code, log),) = finish(start(colours, workdir, 1, "steps=50", "checkpoint.every=25"))
    assert code == 0, log
    return workdir


@pytest.mark.slow
def test_fifty_steps_on_four_hosts_are_those_of_one(colours, tmp_path, alone):
    """Two are compared after one was lost, below."""
    workdir = tmp_path / "run"
    for code, log in finish(start(colours, workdir, 4, "steps=50", "checkpoint.every=25", "mesh.fsdp=4")):
        assert code == 0, log
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    assert (workdir / "model" / "smoljax.json").exists()


@pytest.mark.slow
def test_a_lost_host_ends_the_others_and_a_restart_goes_on_as_if_nothing_was(colours, tmp_path, alone):
    workdir = tmp_path / "run"
    hosts = start(colours, workdir, 2, "steps=50", "checkpoint.every=5")
    wait_for(workdir, 12)
    hosts[1][0].kill()
    killed = time.monotonic()
    (code, log), _ = finish(hosts, timeout=60)
    assert time.monotonic() - killed < 30
    assert code == 1
    said = [line for line in log.splitlines() if line.startswith("smoljax: error:")]
    assert len(said) == 1, log
    assert re.search(
        r"host 0 stops: .* the last whole checkpoint is of step \d+; start all hosts again", said[0]
    )
    for code, log in finish(start(colours, workdir, 2, "steps=50", "checkpoint.every=5")):
        assert code == 0, log
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=2e-4)


@pytest.mark.slow
def test_a_host_that_lives_but_does_no_more_ends_the_run(colours, tmp_path):
    hosts = start(colours, tmp_path / "run", 2, "steps=50", "checkpoint.every=5", "hang=12")
    ended = finish(hosts, timeout=200)
    assert all(code for code, _ in ended)
    # Whichever notices first says it; the other may be ended by that one's end.
    said = "\n".join(log for _, log in ended)
    assert re.search(r"no step for 5 s, though all 2 hosts live: .* checkpoint is of step \d+;", said), said


@pytest.mark.slow
def test_a_signal_to_one_host_saves_and_stops_all_behind_the_same_step(colours, tmp_path):
    workdir = tmp_path / "run"
    hosts = start(colours, workdir, 2, "steps=100000", "checkpoint.every=100000")
    wait_for(workdir, 5)
    hosts[1][0].send_signal(signal.SIGTERM)
    ended = finish(hosts, timeout=120)
    assert [code for code, _ in ended] == [0, 0], ended
    steps = {int(log.splitlines()[-1].split()[0]) for _, log in ended}
    assert len(steps) == 1
    assert (workdir / "checkpoints" / str(steps.pop())).is_dir()


@pytest.mark.slow
def test_hosts_that_do_not_all_come_say_so():
    code = (
        "from smoljax.training.hosts import HostsConfig, join\n"
        f"join(HostsConfig('127.0.0.1:{free_port()}', 2, 1, start_s=5))"
    )
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "host 1 of 2 waited 5 s, and not all hosts met at 127.0.0.1:" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("nowhere",), "HOST:PORT"),
        (("here:1",), "--hosts"),
        (("here:1", 2, 2), "from 0 to 1"),
        (("auto", 2, 0), "leave both out"),
    ],
)
def test_hosts_that_cannot_be_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        HostsConfig(*given)


def test_jax_in_use_cannot_join():
    import jax

    jax.devices()
    with pytest.raises(SmoljaxError, match="host 0 of 2 cannot join"):
        join(HostsConfig("127.0.0.1:1", 2, 0, start_s=1))
