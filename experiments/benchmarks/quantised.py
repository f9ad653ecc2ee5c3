"""What rounding the weights costs: answers of the bundled model, perplexity and scores of SmolLM2-135M.

    python -m experiments.benchmarks.quantised [--pictures 300] [--out docs/benchmarks/quantised.json]

Every kind of weights runs with float32 activations. The bundled model answers and describes pictures of the `scenes`
test split (`smoljax eval`); SmolLM2-135M reads `experiments/benchmarks/prose.txt`, paragraphs of this project's pages
as they were in November 2026, in windows of 512 tokens, each scored from its 64th token on. The error of a score is the
largest of its kind over the first window, against float32; agreement is how often the most likely word stays the same.
Needs the fetched smollm2-135m.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.commands import write_json
from smoljax.evaluation.config import EvalConfig
from smoljax.evaluation.run import evaluate
from smoljax.models import enable_compilation_cache, load

KINDS = ("float32", "bfloat16", "int8", "int4")
WINDOW, CONTEXT = 512, 64
PROSE = Path(__file__).with_name("prose.txt")


def weight_bytes(params: Any) -> int:
    """Bytes of all weights."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def bundled(kind: str, pictures: int) -> dict[str, Any]:
    """Exact answers and CIDEr-D of smolvlm-nano, with their intervals."""
    vlm = load("smolvlm-nano", dtype="float32", weights=kind)  # type: ignore[arg-type]
    config = EvalConfig(limit=pictures)
    found: dict[str, Any] = {"mb": weight_bytes(vlm.packed) / 1e6}
    for task, name in (("vqa", "exact"), ("caption", "cider_d")):
        metrics = evaluate(vlm, "tfds:scenes:test", task, config).metrics
        found[name] = metrics[name].as_dict()
    return found


def reader(kind: str) -> tuple[dict[str, Any], np.ndarray]:
    """Perplexity of SmolLM2-135M, and its scores of the first window."""
    vlm = load("smollm2-135m", dtype="float32", weights=kind)  # type: ignore[arg-type]
    ids = np.asarray(vlm.require_processor().tokenizer.encode(PROSE.read_text()), np.int32)
    losses, first = [], None
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        scores = vlm.logits({"input_ids": window[None], "attention_mask": np.ones((1, WINDOW), bool)})[0]
        first = scores if first is None else first
        wide = scores[CONTEXT - 1 : -1].astype(np.float64)
        top = wide.max(axis=-1)
        total = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
        losses.append(total - wide[np.arange(len(wide)), window[CONTEXT:]])
    assert first is not None
    loss = float(np.concatenate(losses).mean())
    words = sum(map(len, losses))
    return {"perplexity": float(np.exp(loss)), "words": words, "mb": weight_bytes(vlm.packed) / 1e6}, first


def main() -> None:
    """Measures, prints a Markdown table, writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    enable_compilation_cache()
    rows, plain = [], None
    for kind in KINDS:
        text, scores = reader(kind)
        plain = scores if plain is None else plain
        text["largest_error"] = float(np.abs(scores - plain).max())
        text["same_word"] = float((scores.argmax(-1) == plain.argmax(-1)).mean())
        rows.append({"weights": kind, "smollm2-135m": text, "smolvlm-nano": bundled(kind, args.pictures)})
    if args.out:
        write_json(args.out, {"pictures": args.pictures, "rows": rows})
    print(
        "| weights | SmolLM2-135M | perplexity | largest error of a score | same word | smolvlm-nano "
        "| exact answers | CIDEr-D |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        text, eyes = row["smollm2-135m"], row["smolvlm-nano"]
        print(
            f"| {row['weights']} | {text['mb']:.0f} MB | {text['perplexity']:.3f} | {text['largest_error']:.3g} | "
            f"{text['same_word']:.1%} | {eyes['mb']:.1f} MB | {eyes['exact']['value']:.3f} | "
            f"{eyes['cider_d']['value']:.3f} |"
        )


if __name__ == "__main__":
    main()
