"""A run of several hosts, killed again and again at random moments, against one that nobody disturbed.

    python -m experiments.faults.soak [--hosts 2] [--kills 20] [--seed 0]
    python -m experiments.faults.soak --table      # only the table of docs/training.md, from the stored results

Each round starts all hosts, waits a random time behind the first step of the round (so some kills meet a checkpoint
that is being written: one is written every three steps), kills a random one of them by SIGKILL, and measures how long
the others take to stop and what they say. When the run has at last finished, every loss that it logged and every
exported weight is compared with those of the undisturbed run. The result:
experiments/faults/results/soak-HOSTS.json.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.commands import ROOT, fill, machine, read_lines, write_json

RESULTS = ROOT / "experiments" / "faults" / "results"
CONFIG = "experiments/faults/toy.py"
PATIENCE = 8


def start(workdir: Path, hosts: int, steps: int) -> list[subprocess.Popen[str]]:
    """All hosts of the run, each with its own log."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = []
    for host in range(hosts):
        command = [sys.executable, "-m", "smoljax", "train", CONFIG, "--workdir", str(workdir)]
        command += ["--set", f"steps={steps}", "--set", f"mesh.host_devices={4 // hosts}"]
        command += ["--coordinator", f"127.0.0.1:{port}", "--hosts", str(hosts), "--host", str(host)]
        command += ["--patience", str(PATIENCE), "--stall", "60"]
        log = (workdir.parent / f"{workdir.name}.{host}.log").open("w")
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        )
    return started


def logged(workdir: Path) -> dict[int, float]:
    """Step → loss, so far."""
    metrics = workdir / "metrics.jsonl"
    lines = read_lines(metrics) if metrics.exists() else []
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def last_line(workdir: Path, host: int) -> str:
    """What a host said at last of itself."""
    lines = (workdir.parent / f"{workdir.name}.{host}.log").read_text().splitlines()
    own = [line for line in lines if line.startswith("smoljax: error:")]
    jax_own = [line for line in lines if "Terminating process because the JAX distributed service" in line]
    return own[-1] if own else jax_own[-1][:120] if jax_own else (lines[-1] if lines else "")


def disturb(workdir: Path, hosts: int, steps: int, rng: random.Random) -> dict[str, Any] | None:
    """One round: a kill at a random moment. None where the run finished before it."""
    before = max(logged(workdir), default=0)
    running = start(workdir, hosts, steps)
    while max(logged(workdir), default=0) <= before and all(process.poll() is None for process in running):
        time.sleep(0.05)
    delay, victim = rng.uniform(0, 3), rng.randrange(hosts)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(0.02)
    if all(process.poll() is not None for process in running):
        return None
    step = max(logged(workdir), default=0)
    writing = any(path.name.count("orbax-checkpoint-tmp") for path in (workdir / "checkpoints").glob("*"))
    running[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    others = []
    for host, process in enumerate(running):
        process.wait(120)
        if host != victim:
            seconds = round(time.monotonic() - killed, 1)
            others.append(
                {
                    "host": host,
                    "status": process.returncode,
                    "seconds": seconds,
                    "said": last_line(workdir, host),
                }
            )
    running[victim].wait()
    return {"victim": victim, "step": step, "while_writing": writing, "others": others}


def weights(workdir: Path) -> dict[str, np.ndarray]:
    """Of the exported model."""
    from smoljax.convert.checkpoint import iterate_leaves
    from smoljax.convert.convert import load_checkpoint

    return {
        path: np.asarray(leaf)
        for path, leaf in iterate_leaves(load_checkpoint(workdir / "model", "float32").params)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only the table")
    args = parser.parse_args()
    if not args.table:
        write_json(RESULTS / f"soak-{args.hosts}.json", soak(args))
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("soak-*.json"))]
    fill(ROOT / "docs" / "training.md", "soak", table(rows))
    print(table(rows))


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """The undisturbed run, the disturbed one, and how they differ."""
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet, shaken = Path(folder) / "quiet", Path(folder) / "shaken"
        for process in start(quiet, args.hosts, args.steps):
            if process.wait():
                raise SystemExit(f"the undisturbed run failed: {last_line(quiet, 0)}")
        rounds = []
        while len(rounds) < args.kills:
            found = disturb(shaken, args.hosts, args.steps, rng)
            if found is None:
                break
            rounds.append(found)
            print(json.dumps(found), flush=True)
        for process in start(shaken, args.hosts, args.steps):
            if process.wait():
                raise SystemExit(f"the last start failed: {last_line(shaken, 0)}")
        one, other = logged(quiet), logged(shaken)
        unequal = [step for step in sorted({*one, *other}) if one.get(step) != other.get(step)]
        first, second = weights(quiet), weights(shaken)
        worst = max(float(np.abs(first[path] - second[path]).max()) for path in first)
        return {
            "hosts": args.hosts,
            "steps": args.steps,
            "kills": len(rounds),
            "while_a_checkpoint_was_written": sum(item["while_writing"] for item in rounds),
            "host_0_killed": sum(item["victim"] == 0 for item in rounds),
            "slowest_stop_s": max((o["seconds"] for item in rounds for o in item["others"]), default=0.0),
            "losses": len(one),
            "losses_unequal": len(unequal),
            "largest_weight_difference": worst,
            "rounds": rounds,
            "machine": machine(),
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| hosts | kills | of host 0 | while writing | slowest stop, s | steps | losses unequal | weights apart by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['hosts']} | {row['kills']} | {row['host_0_killed']} | {row['while_a_checkpoint_was_written']} "
            f"| {row['slowest_stop_s']} | {row['losses']} | {row['losses_unequal']} "
            f"| {row['largest_weight_difference']:g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
