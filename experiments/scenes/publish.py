"""From finished runs to `checkpoints/smolvlm-nano`: the weights, every figure, the model card.

    python -m experiments.scenes.publish [--runs runs/dense runs/nano runs/answers]

Stores the last run's weights in bfloat16 in Hugging Face layout (one file, which PyTorch reads too), evaluates what is
stored (not the run's float32) on the held-out splits, and writes `results.json`, `metrics.jsonl`, `loss.png` and
`README.md` beside it, and the table of the project's README. Evaluations that are done are not repeated.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, evaluated, fill, machine, smoljax, write_json
from experiments.scenes.figures import (
    card_table,
    curve,
    front_table,
    missed,
    stage,
    thinned,
)

MODEL = ROOT / "checkpoints" / "smolvlm-nano"
CARD = Path(__file__).with_name("card.md")
STAGES = {
    "scenes-dense": "the patch encoder learns to see",
    "smolvlm-nano": "everything together",
    "smolvlm-nano-answers": "more questions, answers weighed like captions",
}
# (name, split, task, further options)
EVALUATIONS = (
    ("test", "test", "vqa", ()),
    ("test", "test", "caption", ()),
    ("test", "test", "grounding", ("--pointing", "400")),
    ("test", "test", "retrieval", ("--limit", "1000")),
    ("blind", "test", "vqa", ("--blind",)),
    ("blind", "test", "caption", ("--blind", "--limit", "1000")),
    ("compositional", "test_compositional", "vqa", ()),
    ("compositional", "test_compositional", "caption", ()),
    ("compositional", "test_compositional", "grounding", ("--pointing", "0")),
    ("compositional", "test_compositional", "retrieval", ("--limit", "1000")),
)


def store(run: Path) -> None:
    """The run's model in bfloat16, in place of the one there."""
    if MODEL.exists():
        shutil.rmtree(MODEL)
    MODEL.parent.mkdir(exist_ok=True)
    smoljax("convert", str(run / "model"), str(MODEL), "--to", "hf", "--dtype", "bfloat16")


def measure(folder: Path) -> dict[str, Any]:
    """Every evaluation of the stored model, place → task → report."""
    results: dict[str, Any] = {}
    for place, split, task, more in EVALUATIONS:
        found = evaluated(str(MODEL), f"tfds:scenes:{split}", task, folder / place, *more)
        found["command"] = found["command"].replace(str(MODEL), "smolvlm-nano")
        found.pop("model", None)
        results.setdefault(place, {})[task] = found
    return results


def card(results: dict[str, Any]) -> str:
    """The model card."""
    training = results["training"]
    rows = [
        f"| {number}. {STAGES[run['name']]} | `{run['command']}` | {run['steps']:,} | {run['pictures']:,} "
        f"| {run['minutes']} |"
        for number, run in enumerate(training, 1)
    ]
    below = missed(results)
    return CARD.read_text().format(
        table=card_table(results),
        missed=f"Below what was asked for at least: {'; '.join(below)}. " if below else "",
        stages="\n".join(rows),
        pictures=sum(run["pictures"] for run in training),
        minutes=sum(run["minutes"] for run in training),
        machine=results["machine"],
    )


def main() -> None:
    """Stores, evaluates, and writes the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs = [ROOT / "runs" / name for name in ("dense", "nano", "answers")]
    parser.add_argument("--runs", type=Path, nargs="+", default=runs, help="the stages in their order")
    parser.add_argument("--pages", action="store_true", help="only write the pages anew, from results.json")
    options = parser.parse_args()
    if not options.pages:
        folder = options.runs[-1] / "evaluation"
        if not (folder / "stored").exists():
            store(options.runs[-1])
            folder.mkdir(exist_ok=True)
            (folder / "stored").touch()
        results = measure(folder)
        training = [stage(run) for run in options.runs]
        write_json(MODEL / "results.json", {"training": training, "machine": machine(), **results})
        thinned(options.runs, MODEL / "metrics.jsonl")
        curve(options.runs, MODEL / "loss.png")
    results = json.loads((MODEL / "results.json").read_text())
    (MODEL / "README.md").write_text(card(results))
    fill(ROOT / "README.md", "figures", front_table(results))
    print(card_table(results))


if __name__ == "__main__":
    main()
