"""Puts what `smoljax bench --json` printed into docs/speed.md, and draws it.

smoljax bench --json > docs/benchmarks/speed.json
python -m experiments.benchmarks.speed_page
"""

import json

from experiments.commands import ROOT, fill
from smoljax.bench.report import markdown, plot

RESULT = ROOT / "docs" / "benchmarks" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"


def main() -> None:
    """Writes the page and the picture."""
    result = json.loads(RESULT.read_text())
    fill(PAGE, "bench", markdown(result).rstrip())
    plot(result, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
