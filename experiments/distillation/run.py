"""A student with and without its teacher: docs/results/distillation.json and docs/distillation.md in one command.

    python -m experiments.distillation.run [--teacher MODEL] [--seeds 3] [--limit 500]

For each seed a student is taught to see (dense.py, shared by both arms), then goes on without a teacher (alone.py) and
with one (taught.py): the same start, data order, steps. All are evaluated on the same pictures of the test split. What
is done already is left out, so the same call goes on after a stop; `--page` only redraws the page from the result.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.commands import RESULTS, ROOT, evaluated, machine, trained, write_json
from experiments.distillation.compare import FIGURES, compare
from experiments.distillation.page import ARMS, page

HERE = "experiments/distillation"
PAGE = ROOT / "docs" / "distillation.md"
RESULT = RESULTS / "distillation.json"
TASKS = ("vqa", "caption", "loss")
SPLIT = "tfds:scenes:test"


def train_seed(workdir: Path, seed: int, teacher: str, extra: dict[str, list[str]]) -> dict[str, Any]:
    """The three runs of a seed; stage → what `trained` returns."""
    folder = workdir / f"seed{seed}"
    dense = trained(f"{HERE}/dense.py", folder / "dense", [f"seed={seed}", *extra["dense"]])
    found = {"dense": dense}
    for arm in ARMS:
        overrides = [f"model.start={dense['model']}", f"seed={seed}", *extra["arms"]]
        if arm == "taught":
            overrides.append(f"objectives.distill.teacher={teacher}")
        found[arm] = trained(f"{HERE}/{arm}.py", folder / arm, overrides)
    return found


def evaluate(model: str, folder: Path, limit: int) -> dict[str, Any]:
    """Task → the report of `smoljax eval`."""
    return {task: evaluated(model, SPLIT, task, folder, "--limit", str(limit)) for task in TASKS}


def _parameters(model: str) -> int:
    from math import prod

    import jax

    from smoljax.convert.convert import load_checkpoint
    from smoljax.models import resolve

    path = ROOT / model if (ROOT / model).exists() else resolve(model)
    checkpoint = load_checkpoint(path, "float32", resolve=resolve)
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(checkpoint.params))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="smolvlm-nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="pictures of the test split")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "distillation")
    parser.add_argument("--page", action="store_true", help="only redraw the page")
    parser.add_argument("--set-dense", action="append", default=[], metavar="KEY=VALUE", help="for dense.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for both arms")
    args = parser.parse_args()
    if not args.page:
        write_json(RESULT, collect(args))
    PAGE.write_text(page(json.loads(RESULT.read_text())))
    print(PAGE.read_text())


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates what is missing, and compares."""
    workdir, seeds = args.workdir.absolute(), list(range(args.seeds))
    extra = {"dense": args.set_dense, "arms": args.set}
    folders = {arm: [workdir / f"seed{seed}" / arm / "eval" for seed in seeds] for arm in ARMS}
    training, reports = [], []
    for seed in seeds:
        runs = train_seed(workdir, seed, args.teacher, extra)
        training.append(runs)
        reports.append({arm: evaluate(runs[arm]["model"], folders[arm][seed], args.limit) for arm in ARMS})
    own = workdir / "teacher" / "eval"
    taught_by = evaluate(args.teacher, own, args.limit)
    pairs = list(zip(folders["alone"], folders["taught"], strict=True))
    figures = {}
    for name, figure in FIGURES.items():
        found = compare(pairs, figure)
        found["teacher"] = compare([(own, own)], figure, draws=1)["alone"][0]
        figures[name] = found
    return {
        "command": "python -m experiments.distillation.run",
        "data": SPLIT,
        "limit": args.limit,
        "seeds": seeds,
        "student": {"parameters": _parameters(training[0]["alone"]["model"])},
        "teacher": {"model": args.teacher, "parameters": _parameters(args.teacher), "evaluation": taught_by},
        "figures": figures,
        "training": training,
        "evaluation": reports,
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
