"""Puts what was measured into docs/speed.md and README.md: `smoljax bench`, rounding, single products.

smoljax bench --json > docs/benchmarks/speed.json
python -m experiments.benchmarks.quantised --pictures 200 --out docs/benchmarks/quantised.json
python -m experiments.benchmarks.products --out docs/benchmarks/products.json
python -m experiments.benchmarks.speed_page
"""

import json
from typing import Any

from experiments.benchmarks import products, quantised
from experiments.commands import ROOT, fill
from smoljax.bench.report import markdown, plot, shown

RESULT = ROOT / "docs" / "benchmarks" / "speed.json"
ROUNDED = RESULT.with_name("quantised.json")
SINGLE = RESULT.with_name("products.json")
PAGE = ROOT / "docs" / "speed.md"
#: The rows of README.md: figures and what they are called there.
SHORT = {
    "decode_float32": "decoding",
    "decode_int8_own": "decoding, int8 weights",
    "decode_llama_f32": "decoding, SmolLM2-135M",
    "lookup": "text that repeats its prompt, `--lookup`",
    "prefill_512_transformers": "reading a prompt of 512 tokens",
    "first_token": "one tile and 100 words to the first token",
    "again": "a second question about the picture, `vlm.serve`",
    "start_float32": "process start to first token, cache warm",
    "peak_float32": "peak memory of an answer, `--lean`",
    "peak_int8": "the same with int8 weights",
    "train_step": 'training step, remat "dots"',
    "train_peak": 'peak memory of training, remat "full"',
}


def short(result: dict[str, Any]) -> str:
    """The table of README.md."""
    rows = {row["figure"]: row for row in result["rows"]}
    lines = ["| | smoljax | beside | |", "|---|---|---|---|"]
    for key, name in SHORT.items():
        row = rows[key]
        ours, theirs = (shown(row[side], row["unit"]) for side in ("ours", "peer"))
        peer = "own, without" if row["peer_name"] == row["ours_name"] else row["peer_name"]
        less = " less" if row["unit"] == "GB" else ""
        lines.append(f"| {name} | {ours} | {peer}: {theirs} | {row['ratio']:.2f}×{less} |")
    return "\n".join(lines)


def main() -> None:
    """Writes the page and the picture."""
    result = json.loads(RESULT.read_text())
    fill(PAGE, "bench", markdown(result).rstrip())
    fill(ROOT / "README.md", "speed", short(result))
    fill(PAGE, "single products", products.markdown(json.loads(SINGLE.read_text())))
    plot(result, RESULT.with_suffix(".png"))
    rounded = json.loads(ROUNDED.read_text())
    for of in ("weights", "cache"):
        fill(PAGE, f"rounded {of}", quantised.markdown(rounded, of).rstrip())


if __name__ == "__main__":
    main()
