"""The numbers of docs/scenes.md, counted from the written data."""

from collections import Counter
from typing import Any

from smoljax.data.scenes.blind import blind_baseline
from smoljax.data.scenes.vocabulary import KINDS, SPLITS


def count(builder: Any, split: str) -> dict[str, Counter[str]]:
    """How often each value occurs in `split`, by feature; "answer KIND" for the answers of a kind."""
    from tensorflow_datasets import decode

    found: dict[str, Counter[str]] = {}

    def add(name: str, *values: Any) -> None:
        found.setdefault(name, Counter()).update(
            value.decode() if isinstance(value, bytes) else str(value) for value in values
        )

    for example in builder.as_data_source(split, decoders={"image": decode.SkipDecoding()}):
        objects, asked = example["objects"], example["questions"]
        for name in ("shape", "colour", "size", "texture"):
            add(name, *objects[name])
        add("reference", *("some" if reference else "none" for reference in objects["reference"]))
        add("objects", len(objects["shape"]))
        add("background", example["background"])
        text = example["text"].decode()
        add("printed", "nothing" if not text else "a number" if text.isdigit() else "a word")
        add("words of a caption", *(len(caption.split()) for caption in example["captions"]))
        add("questions", len(asked["kind"]))
        add("kind", *asked["kind"])
        add("kind, unseen pairs", *(k for k, u in zip(asked["kind"], asked["unseen_pair"], strict=True) if u))
        for kind, answer in zip(asked["kind"], asked["answer"], strict=True):
            add(f"answer {kind.decode()}", answer)
    return found


def report(builder: Any) -> str:
    """Counts of every split and the blind baseline, as lines of text."""
    lines = []
    for split in SPLITS:
        lines.append(f"== {split}: {builder.info.splits[split].num_examples} pictures")
        for name, counts in count(builder, split).items():
            if name in ("questions", "words of a caption"):
                mean = sum(int(value) * times for value, times in counts.items()) / counts.total()
                low, high = min(map(int, counts)), max(map(int, counts))
                lines.append(f"{name}: mean {mean:.1f}, {low} to {high}")
                continue
            shown = ", ".join(
                f"{value} {times / counts.total():.1%}" for value, times in counts.most_common(10)
            )
            lines.append(f"{name} ({counts.total()}): {shown}")
    lines.append("== blind baseline, fitted on train")
    columns = {
        "test": blind_baseline(builder),
        "test_compositional": blind_baseline(builder, split="test_compositional"),
        "unseen pairs only": blind_baseline(builder, split="test_compositional", unseen_only=True),
    }
    for kind in (*KINDS, "all"):
        scores = ", ".join(f"{name} {scores[kind]:.1%}" for name, scores in columns.items() if kind in scores)
        lines.append(f"{kind}: {scores}")
    return "\n".join(lines)
