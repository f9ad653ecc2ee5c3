"""Puts what was measured into docs/speed.md: what `smoljax bench --json` printed, drawn too, and what rounding costs.

smoljax bench --json > docs/benchmarks/speed.json
python -m experiments.benchmarks.quantised --pictures 200 --out docs/benchmarks/quantised.json
python -m experiments.benchmarks.speed_page
"""

import json

from experiments.benchmarks import quantised
from experiments.commands import ROOT, fill
from smoljax.bench.report import markdown, plot

RESULT = ROOT / "docs" / "benchmarks" / "speed.json"
ROUNDED = RESULT.with_name("quantised.json")
PAGE = ROOT / "docs" / "speed.md"


def main() -> None:
    """Writes the page and the picture."""
    result = json.loads(RESULT.read_text())
    fill(PAGE, "bench", markdown(result).rstrip())
    plot(result, RESULT.with_suffix(".png"))
    rounded = json.loads(ROUNDED.read_text())
    for of in ("weights", "cache"):
        fill(PAGE, f"rounded {of}", quantised.markdown(rounded, of).rstrip())


if __name__ == "__main__":
    main()
