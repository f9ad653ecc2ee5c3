"""The grid: every variant over seeds, trained, measured, reported. Goes on where it stopped, row by row.

    python -m experiments.embedding_sharing.run [--variants linear mlp …] [--seeds 3]
    python -m experiments.embedding_sharing.run --level words     # on SmolLM2-135M's words; `smoljax fetch` it first
    python -m experiments.embedding_sharing.run --report          # only redraw, from the stored rows

Rows go to experiments/embedding_sharing/results/LEVEL/VARIANT-SEED.json; the report to docs/embedding_sharing.md and
docs/embedding_sharing/. Three to four minutes a row on two cores (level words: a quarter of an hour). Seed 0 of all
variants comes first, then seed 1, ….
"""

import argparse
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, machine, read_lines, short, trained, write_json
from experiments.embedding_sharing.dense import OUT
from experiments.embedding_sharing.levels import HERE, LEVELS, Level
from experiments.embedding_sharing.measure import code
from experiments.embedding_sharing.rows import CONTROL
from experiments.embedding_sharing.variants import Variant
from smoljax.nn.connectors import CONNECTORS
from smoljax.training.config_file import FREE, as_json, read_config


def row_of(
    level: Level,
    variant: Variant,
    seed: int,
    workdir: Path,
    results: Path,
    pictures: int,
    extra: list[str],
    dense: list[str],
) -> Path:
    """Trains and measures one variant, unless its row is there.

    Returns:
      The row's file.
    """
    out = results / f"{variant.name}-{seed}.json"
    started = level.starts(variant, seed, workdir, dense)
    overrides = [f"sharing={variant.name}", f"seed={seed}", *extra, *started]
    config = {
        "run": as_json(read_config(ROOT / level.config, overrides), defaults=False),
        "before": level.before(variant, seed, dense),
    }
    if variant.own:
        config["connector"] = inspect.getsource(CONNECTORS[variant.sharing.connector])
    config = anywhere(config)
    if _is_there(out, config, pictures):
        return out
    run = workdir / f"{variant.name}-{seed}"
    training = trained(level.config, run, overrides)
    measured = measure(training["model"], run / "row.json", pictures, level.text)
    found = {"training": training, "curve": curve(run / "metrics.jsonl"), "measured": measured}
    _write(out, variant.name, variant.family, variant.about, seed, config, found)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return out


def control_row(level: Level, seed: int, workdir: Path, results: Path, pictures: int) -> Path:
    """The row of a model that learned nothing."""
    out = results / f"{CONTROL}-{seed}.json"
    config = {"untrained": level.control, "architecture": level.architecture(), "seed": seed}
    if _is_there(out, config, pictures):
        return out
    model = level.untrained(seed, workdir)
    told = workdir / f"{CONTROL}-{seed}" / "row.json"
    measured = measure(short(model), told, pictures, level.text)
    found = {"training": {"steps": 0, "seconds": 0.0}, "curve": {}, "measured": measured}
    _write(out, CONTROL, "control", level.control, seed, config, found)
    return out


def _is_there(out: Path, config: dict[str, Any], pictures: int) -> bool:
    """Whether the row of this config is there, measured by the code as it is; stops at one of another config."""
    if not out.exists():
        return False
    before = json.loads(out.read_text())
    if before["config_hash"] != config_hash(config):
        raise SystemExit(
            f"{out} is of another config; remove it to make the row anew, or take another --results"
        )
    return before["measured"]["pictures"] == pictures and before["measured"]["code"] == code()


def _write(
    out: Path, name: str, family: str, about: str, seed: int, config: dict[str, Any], found: dict[str, Any]
) -> None:
    row = {
        "variant": name,
        "family": family,
        "about": about,
        "seed": seed,
        "config_hash": config_hash(config),
        "config": config,
        **found,
        "versions": machine(),
    }
    write_json(out, row)


def measure(model: str, out: Path, pictures: int, text: str | None = None) -> dict[str, Any]:
    """The measurements of a model, in a process of their own; what is measured already is read."""
    if out.exists():
        found = json.loads(out.read_text())
        if (found["pictures"], found.get("code"), "text" in found) == (pictures, code(), bool(text)):
            return found
    command = [sys.executable, "-m", f"{HERE.replace('/', '.')}.measure", model, "--out", str(out)]
    command += ["--pictures", str(pictures), *(["--text", text] if text else [])]
    print("$", *command[1:], file=sys.stderr, flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(out.read_text())


def anywhere(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the repository's own files named from its root: the same on every machine."""
    return json.loads(json.dumps(config).replace(f"{ROOT}/", ""))


def config_hash(config: dict[str, Any]) -> str:
    """Twelve digits that two runs share exactly if nothing that they compute differs."""
    kept = {
        name: {key: value for key, value in part.items() if key not in FREE}
        if isinstance(part, dict)
        else part
        for name, part in config.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def curve(metrics: Path) -> dict[str, list[list[float]]]:
    """Step and loss of training and of validation."""
    found: dict[str, list[list[float]]] = {"train": [], "validation": []}
    for line in read_lines(metrics):
        if line["kind"] in found and "loss_next_token" in line:
            found[line["kind"]].append([line["step"], round(line["loss_next_token"], 4)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", choices=list(LEVELS), default="scenes")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="all of the level by default")
    parser.add_argument("--seeds", type=int, help="3 on scenes, 1 on words by default")
    parser.add_argument("--pictures", type=int, help="to measure with; 400 on scenes, 96 on words")
    parser.add_argument("--workdir", type=Path, help=f"default {OUT}, or {OUT}/words")
    parser.add_argument("--results", type=Path, help=f"default {HERE}/results/LEVEL")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    parser.add_argument("--report", action="store_true", help="only redraw the report")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the level's config"
    )
    parser.add_argument("--set-dense", action="append", default=[], metavar="KEY=VALUE", help="of dense.py")
    args = parser.parse_args()
    level = LEVELS[args.level]
    variants = level.variants()
    names = args.variants or list(variants)
    if unknown := sorted(set(names) - set(variants)):
        raise SystemExit(f"no variant {', '.join(unknown)}; known: {', '.join(variants)}")
    workdir = args.workdir or ROOT / OUT / ("" if level.name == "scenes" else level.name)
    folders = {name: other.results for name, other in LEVELS.items()}
    if args.results:
        folders = {str(level.name): args.results.absolute()}
    if not args.report:
        pictures = args.pictures or level.pictures
        plan = [(seed, name) for seed in range(args.seeds or level.seeds) for name in (CONTROL, *names)]
        for done, (seed, name) in enumerate(plan, 1):
            place = (workdir.absolute(), folders[level.name], pictures)
            if name == CONTROL:
                control_row(level, seed, *place)
            else:
                row_of(level, variants[name], seed, *place, args.set, args.set_dense)
            print(f"[{done}/{len(plan)}] {name}, seed {seed}", flush=True)
    from experiments.embedding_sharing.report import write_report

    print(write_report(folders, args.docs.absolute()))


if __name__ == "__main__":
    main()
