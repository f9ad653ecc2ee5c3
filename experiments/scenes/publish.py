"""From a finished run to `checkpoints/smolvlm-nano`: the weights, every figure, the model card.

    python -m experiments.scenes.publish [--dense runs/dense] [--run runs/nano]

Stores the weights in bfloat16 in Hugging Face layout (one file, which PyTorch reads too), evaluates what is stored (not
the run's float32) on the held-out splits, and writes `results.json`, `metrics.jsonl`, `loss.png` and `README.md` beside
it. Evaluations that are done are not repeated.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, evaluated, machine, read_lines, smoljax, write_json

MODEL = ROOT / "checkpoints" / "smolvlm-nano"
CARD = Path(__file__).with_name("card.md")
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
# Row, (evaluation, task, metric), (blind evaluation's task and metric), least, aim.
ROWS: tuple[tuple[str, tuple[str, str, str], tuple[str, str] | None, float | None, float | None], ...] = (
    (
        "existence, count, attributes, exact",
        ("test", "vqa", "exact/objects"),
        ("vqa", "exact/objects"),
        0.93,
        0.97,
    ),
    ("· existence", ("test", "vqa", "exact/existence"), ("vqa", "exact/existence"), None, None),
    ("· count", ("test", "vqa", "exact/count"), ("vqa", "exact/count"), None, None),
    ("· colour", ("test", "vqa", "exact/colour"), ("vqa", "exact/colour"), None, None),
    ("· shape", ("test", "vqa", "exact/shape"), ("vqa", "exact/shape"), None, None),
    ("· size", ("test", "vqa", "exact/size"), ("vqa", "exact/size"), None, None),
    ("· texture", ("test", "vqa", "exact/texture"), ("vqa", "exact/texture"), None, None),
    ("comparison, exact", ("test", "vqa", "exact/comparison"), ("vqa", "exact/comparison"), None, None),
    ("relation, exact", ("test", "vqa", "exact/relation"), ("vqa", "exact/relation"), 0.80, 0.95),
    ("reading, exact", ("test", "vqa", "reading"), ("vqa", "reading"), 0.70, 0.90),
    (
        "caption, object and attribute F1",
        ("test", "caption", "object_attribute_f1"),
        ("caption", "object_attribute_f1"),
        0.95,
        0.98,
    ),
    ("caption, relation F1", ("test", "caption", "relation_f1"), ("caption", "relation_f1"), None, None),
    ("caption, CIDEr-D", ("test", "caption", "cider_d"), ("caption", "cider_d"), None, None),
    ("caption, BLEU-4", ("test", "caption", "bleu_4"), ("caption", "bleu_4"), None, None),
    ("caption, ROUGE-L", ("test", "caption", "rouge_l"), ("caption", "rouge_l"), None, None),
    ("grounding, IoU ≥ 0.5", ("test", "grounding", "iou@0.5"), None, 0.92, 0.96),
    ("grounding, mean IoU", ("test", "grounding", "mean_iou"), None, None, None),
    ("heat map, pointing game", ("test", "grounding", "pointing"), None, None, None),
    ("retrieval of 1,000, picture → text R@1", ("test", "retrieval", "image_to_text/R@1"), None, 0.92, 0.97),
    ("retrieval of 1,000, text → picture R@1", ("test", "retrieval", "text_to_image/R@1"), None, 0.92, 0.97),
    ("· R@5, picture → text", ("test", "retrieval", "image_to_text/R@5"), None, None, None),
    ("· R@5, text → picture", ("test", "retrieval", "text_to_image/R@5"), None, None, None),
    (
        "unseen pairs (`test_compositional`), exact",
        ("compositional", "vqa", "exact/unseen_pair"),
        None,
        0.75,
        0.85,
    ),
    ("· all its questions", ("compositional", "vqa", "exact"), None, None, None),
    ("· its reading, half of the words never seen", ("compositional", "vqa", "reading"), None, None, None),
    (
        "· its captions, object and attribute F1",
        ("compositional", "caption", "object_attribute_f1"),
        None,
        None,
        None,
    ),
    ("· its grounding, IoU ≥ 0.5", ("compositional", "grounding", "iou@0.5"), None, None, None),
    (
        "· its retrieval, text → picture R@1",
        ("compositional", "retrieval", "text_to_image/R@1"),
        None,
        None,
        None,
    ),
)


def store(run: Path) -> None:
    """The run's model in bfloat16, with what the run left to read."""
    if MODEL.exists():
        shutil.rmtree(MODEL)
    MODEL.parent.mkdir(exist_ok=True)
    smoljax("convert", str(run / "model"), str(MODEL), "--to", "hf", "--dtype", "bfloat16")


def stages(dense: Path, run: Path) -> list[dict[str, Any]]:
    """Of each stage: command, steps, pictures, seconds spent in steps, and the config's digest."""
    found = []
    for folder in (dense, run):
        config = json.loads((folder / "config.json").read_text())
        lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        rows = config["data"]["batch_size"]
        seconds, last = 0.0, 0
        for line in lines:
            seconds += (line["step"] - last) * rows / line["images_per_s"]
            last = line["step"]
        file = {"scenes-dense": "dense", "smolvlm-nano": "nano"}[config["name"]]
        found.append(
            {
                "command": f"smoljax train experiments/scenes/{file}.py --workdir runs/{file}",
                "steps": last,
                "pictures": last * rows,
                "minutes": round(seconds / 60, 1),
                "seed": config["seed"],
                "parameters": None,
            }
        )
    return found


def curve(run: Path, target: Path) -> None:
    """The loss curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_lines(run / "metrics.jsonl")
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), constrained_layout=True)
    panels = (
        ("loss_next_token", "next-token loss"),
        ("loss_contrastive", "contrastive loss"),
        ("loss_dense", "dense loss"),
    )
    for axis, (key, title) in zip(axes, panels, strict=True):
        for kind, style in (("train", {"lw": 0.6, "alpha": 0.6}), ("validation", {"marker": "o", "ms": 3})):
            points = [(line["step"], line[key]) for line in lines if line["kind"] == kind]
            axis.plot(*zip(*points, strict=True), label=kind, **style)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(target, dpi=90)
    plt.close(figure)


def thinned(run: Path, target: Path) -> None:
    """Every line of metrics.jsonl, floats to five figures."""
    with target.open("w") as file:
        for line in read_lines(run / "metrics.jsonl"):
            short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in line.items()}
            file.write(json.dumps(short) + "\n")


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| figure | value | 95 % interval | picture greyed | at least | aim |",
        "|---|---|---|---|---|---|",
    ]
    for name, (place, task, metric), blind, least, aim in ROWS:
        found = results[place][task]["metrics"].get(metric)
        if found is None:
            continue
        percent = metric != "cider_d"
        cell = "–"
        if blind is not None:
            cell = _number(results["blind"][blind[0]]["metrics"][blind[1]]["value"], percent)
        bounds = [f"{100 * value:.0f} %" if value else "" for value in (least, aim)]
        value, low, high = (_number(found[key], percent) for key in ("value", "low", "high"))
        lines.append(f"| {name} | **{value}** | {low} – {high} | {cell} | {bounds[0]} | {bounds[1]} |")
    return "\n".join(lines)


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.2f}"


def main() -> None:
    """Stores, evaluates, and writes the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dense", type=Path, default=ROOT / "runs" / "dense")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "nano")
    options = parser.parse_args()
    folder = options.run / "evaluation"
    if not (folder / "stored").exists():
        store(options.run)
        folder.mkdir(exist_ok=True)
        (folder / "stored").touch()
    results: dict[str, Any] = {}
    for place, split, task, more in EVALUATIONS:
        found = evaluated(str(MODEL), f"tfds:scenes:{split}", task, folder / place, *more)
        found["command"] = found["command"].replace(str(MODEL), "smolvlm-nano")
        found.pop("model", None)
        results.setdefault(place, {})[task] = found
    training = stages(options.dense, options.run)
    write_json(MODEL / "results.json", {"training": training, "machine": machine(), **results})
    thinned(options.run, MODEL / "metrics.jsonl")
    curve(options.run, MODEL / "loss.png")
    first, second = training
    text = CARD.read_text().format(table=table(results), dense=first, nano=second, machine=machine())
    (MODEL / "README.md").write_text(text)
    print(table(results))


if __name__ == "__main__":
    main()
