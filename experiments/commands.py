"""Recipes as commands: what they run is what a reader can type, timed, and left out when it is done already."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import smoljax as package

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def smoljax(*args: str) -> tuple[dict[str, Any], float]:
    """The JSON that a `smoljax` command prints and the seconds it took; its progress goes to standard error."""
    print("$ smoljax", *args, file=sys.stderr, flush=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "smoljax", *args, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            out, _ = process.communicate()
        except KeyboardInterrupt:  # the command got it too: a training run saves, and says how far it came
            out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(
            f"smoljax {args[0]} ended with status {process.returncode}; the same call goes on from there"
        )
    return json.loads(out), round(time.perf_counter() - started, 1)


def trained(config: str, workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains unless `workdir/model` is there. Stops where the run was stopped before its last step.

    Returns:
      `command`, `steps`, `model`, and `seconds`: start, compilation, validation and export included, added up
      over the calls that it took.
    """
    told = workdir / "recipe.json"
    args = ["train", config, "--workdir", short(workdir)]
    for override in overrides:
        args += ["--set", override]
    before = {"seconds": 0.0, "calls": 0}
    if told.exists():
        before = json.loads(told.read_text())
        _check_command(told, before, args)
    if before.get("finished") and (workdir / "model").is_dir():
        return before
    found, seconds = smoljax(*args)
    record = {
        "command": " ".join(["smoljax", *args]),
        "steps": found["step"],
        "loss": found["loss"],
        "model": found["model"],
        "finished": found["finished"],
        "seconds": round(before["seconds"] + seconds, 1),
        "calls": before["calls"] + 1,
    }
    write_json(told, record)
    if not found["finished"]:
        raise SystemExit(f"{workdir}: stopped at step {found['step']}; the same call goes on")
    return record


def evaluated(model: str, data: str, task: str, folder: Path, *args: str) -> dict[str, Any]:
    """`smoljax eval` into `folder/TASK.json` and, sample by sample, `folder/TASK.jsonl`, unless both are there."""
    told = folder / f"{task}.json"
    predictions = told.with_suffix(".jsonl")
    command = ["eval", "-m", model, "-d", data, "-t", task, *args]
    if told.exists() and predictions.exists():
        before = json.loads(told.read_text())
        _check_command(told, before, command)
        return before
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = smoljax(*command, "--predictions", str(predictions))
    found = {"command": " ".join(["smoljax", *command]), **found}
    write_json(told, found)
    return found


def _check_command(told: Path, before: dict[str, Any], args: Sequence[str]) -> None:
    """Refuses what another command left behind."""
    command = " ".join(["smoljax", *args])
    if before["command"] != command:
        raise SystemExit(
            f"{told} was made by another command:\n  {before['command']}\nand now it would be\n  {command}\n"
            "take another --workdir, or remove the folder"
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, value: Any) -> None:
    """Indented, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    aside.replace(path)


def fill(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the marks `<!-- NAME, written by … -->` and `<!-- end of NAME -->` of a page."""
    head, mark, rest = page.read_text().partition(f"<!-- {name}, written by ")
    by, _, old = rest.partition("\n")
    _, end, tail = old.partition(f"<!-- end of {name} -->")
    if not mark or not end:
        raise SystemExit(f"{page}: has no marks of {name!r}")
    page.write_text(f"{head}{mark}{by}\n{text}\n{end}{tail}")


def machine() -> dict[str, Any]:
    """What the figures of a result depend on beside the command: versions, cores, the day."""
    import jax

    return {
        "smoljax": package.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def short(path: Path) -> str:
    """The path as one types it in the repository's root."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
