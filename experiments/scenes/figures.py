"""The figures of the bundled model, as tables and curves, from what `smoljax eval` and the runs left."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import read_lines

Results = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One row of the card.

    Attributes:
      name: what it is called there.
      task, metric: of `smoljax eval`.
      split: "test" or "compositional".
      blind: whether the same was measured with the picture greyed.
      least, aim: what was asked for, None where nothing was.
      front: its name in the README, None where it is not there.
    """

    name: str
    task: str
    metric: str
    split: str = "test"
    blind: bool = False
    least: float | None = None
    aim: float | None = None
    front: str | None = None

    def cell(self, results: Results, place: str, key: str = "value") -> str:
        """Value, "low" or "high" of an evaluation, as text."""
        value = results[place][self.task]["metrics"][self.metric][key]
        return f"{value:.2f}" if self.metric == "cider_d" else f"{100 * value:.1f} %"


FIGURES = (
    Figure(
        "existence, count, attributes, exact",
        "vqa",
        "exact/objects",
        blind=True,
        least=0.93,
        aim=0.97,
        front="questions: existence, count, attributes",
    ),
    *(
        Figure(f"· {kind}", "vqa", f"exact/{kind}", blind=True)
        for kind in ("existence", "count", "colour", "shape", "size", "texture")
    ),
    Figure("comparison, exact", "vqa", "exact/comparison", blind=True),
    Figure(
        "relation, exact",
        "vqa",
        "exact/relation",
        blind=True,
        least=0.80,
        aim=0.95,
        front="questions: relations",
    ),
    Figure(
        "reading, exact",
        "vqa",
        "reading",
        blind=True,
        least=0.70,
        aim=0.90,
        front="reading printed words and numbers",
    ),
    Figure(
        "caption, object and attribute F1",
        "caption",
        "object_attribute_f1",
        blind=True,
        least=0.95,
        aim=0.98,
        front="captions: F1 of objects and attributes",
    ),
    Figure("caption, relation F1", "caption", "relation_f1", blind=True),
    Figure("caption, CIDEr-D", "caption", "cider_d", blind=True),
    Figure("caption, BLEU-4", "caption", "bleu_4", blind=True),
    Figure("caption, ROUGE-L", "caption", "rouge_l", blind=True),
    Figure(
        "grounding, IoU ≥ 0.5",
        "grounding",
        "iou@0.5",
        least=0.92,
        aim=0.96,
        front="pointing: boxes with IoU ≥ 0.5",
    ),
    Figure("grounding, mean IoU", "grounding", "mean_iou"),
    Figure("heat map, pointing game", "grounding", "pointing"),
    Figure(
        "retrieval of 1,000, picture → text R@1",
        "retrieval",
        "image_to_text/R@1",
        least=0.92,
        aim=0.97,
        front="retrieval among 1,000, R@1, picture → text",
    ),
    Figure(
        "retrieval of 1,000, text → picture R@1",
        "retrieval",
        "text_to_image/R@1",
        least=0.92,
        aim=0.97,
        front="retrieval among 1,000, R@1, text → picture",
    ),
    Figure("· R@5, picture → text", "retrieval", "image_to_text/R@5"),
    Figure("· R@5, text → picture", "retrieval", "text_to_image/R@5"),
    Figure(
        "unseen pairs (`test_compositional`), exact",
        "vqa",
        "exact/unseen_pair",
        "compositional",
        least=0.75,
        aim=0.85,
        front="questions about colour–shape pairs never seen in training",
    ),
    Figure("· all its questions", "vqa", "exact", "compositional"),
    Figure("· its reading, half of the words never seen", "vqa", "reading", "compositional"),
    Figure("· its captions, object and attribute F1", "caption", "object_attribute_f1", "compositional"),
    Figure("· its grounding, IoU ≥ 0.5", "grounding", "iou@0.5", "compositional"),
    Figure("· its retrieval, text → picture R@1", "retrieval", "text_to_image/R@1", "compositional"),
)


def card_table(results: Results) -> str:
    """Every figure with its interval, as Markdown."""
    lines = [
        "| figure | value | 95 % interval | picture greyed | at least | aim |",
        "|---|---|---|---|---|---|",
    ]
    for figure in FIGURES:
        value, low, high = (figure.cell(results, figure.split, key) for key in ("value", "low", "high"))
        blind = figure.cell(results, "blind") if figure.blind else "–"
        least, aim = (f"{100 * bound:.0f} %" if bound else "" for bound in (figure.least, figure.aim))
        lines.append(f"| {figure.name} | **{value}** | {low} – {high} | {blind} | {least} | {aim} |")
    return "\n".join(lines)


def front_table(results: Results) -> str:
    """The README's table."""
    lines = ["| held-out scenes | | picture greyed |", "|---|---|---|"]
    for figure in FIGURES:
        if figure.front is not None:
            blind = figure.cell(results, "blind") if figure.blind else ""
            lines.append(f"| {figure.front} | {figure.cell(results, figure.split)} | {blind} |")
    return "\n".join(lines)


def missed(results: Results) -> list[str]:
    """The names of figures below what was asked for at least."""
    return [
        figure.name
        for figure in FIGURES
        if figure.least is not None
        and results[figure.split][figure.task]["metrics"][figure.metric]["value"] < figure.least
    ]


def stage(folder: Path) -> dict[str, Any]:
    """Of a run: its command, steps, pictures, minutes spent in steps, and seed."""
    config = json.loads((folder / "config.json").read_text())
    rows, seconds, last = config["data"]["batch_size"], 0.0, 0
    for line in read_lines(folder / "metrics.jsonl"):
        if line["kind"] == "train":
            seconds += (line["step"] - last) * rows / line["images_per_s"]
            last = line["step"]
    return {
        "name": config["name"],
        "command": f"smoljax train experiments/scenes/{folder.name}.py --workdir runs/{folder.name}",
        "steps": last,
        "pictures": last * rows,
        "minutes": round(seconds / 60, 1),
        "seed": config["seed"],
    }


def curve(folders: Sequence[Path], target: Path) -> None:
    """Losses and what the patches show over the pictures seen, stage after stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), constrained_layout=True)
    panels = (
        ({"loss_next_token": "next-token loss"}, "next-token loss (stage 3 weighs answers more)"),
        ({"token_accuracy": "learned tokens right"}, "learned tokens: share right"),
        ({"dense_object_shape": "shape", "dense_character": "character"}, "patches: share right"),
    )
    seen = 0
    for number, folder in enumerate(folders):
        lines = read_lines(folder / "metrics.jsonl")
        rows = json.loads((folder / "config.json").read_text())["data"]["batch_size"]
        for axis, (keys, _) in zip(axes, panels, strict=True):
            for place, (key, label) in enumerate(keys.items()):
                for kind, style in (
                    ("train", {"lw": 0.5, "alpha": 0.4}),
                    ("validation", {"marker": "o", "ms": 2.5, "lw": 1.2}),
                ):
                    points = [
                        ((seen + line["step"] * rows) / 1000, line[key])
                        for line in lines
                        if line["kind"] == kind and key in line
                    ]
                    if points:
                        told = f"{label}, {kind}" if number == len(folders) - 1 else None
                        axis.plot(*zip(*points, strict=True), color=f"C{place}", label=told, **style)
        seen += lines[-1]["step"] * rows
        for axis in axes:
            if number < len(folders) - 1:
                axis.axvline(seen / 1000, color="0.5", lw=0.8, ls=":")
    for axis, (_, title) in zip(axes, panels, strict=True):
        axis.set(title=title, xlabel="thousand pictures")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set(yscale="log")
    figure.savefig(target, dpi=90)
    plt.close(figure)


def thinned(folders: Sequence[Path], target: Path) -> None:
    """Every validation and every fourth training line of the runs, with the stage's number, floats to four figures."""
    with target.open("w") as file:
        for number, folder in enumerate(folders, 1):
            lines = read_lines(folder / "metrics.jsonl")
            training = [line for line in lines if line["kind"] == "train"]
            kept = {id(line) for line in training[3::4]}
            for line in lines:
                if line["kind"] == "validation" or id(line) in kept:
                    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
                    file.write(json.dumps({"stage": number, **short}) + "\n")
