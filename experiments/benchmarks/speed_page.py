"""Puts what `smoljax bench --json` printed into docs/speed.md.

smoljax bench --json > docs/benchmarks/speed.json
python -m experiments.benchmarks.speed_page
"""

import json
from pathlib import Path

from smoljax.bench.report import markdown, plot

DOCS = Path(__file__).parent.parent.parent / "docs"
RESULT = DOCS / "benchmarks" / "speed.json"
START, END = "experiments.benchmarks.speed_page` -->\n", "<!-- end -->"


def filled(page: str, table: str) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}{table}{END}{after}"


def main() -> None:
    """Writes the page and the picture."""
    result = json.loads(RESULT.read_text())
    page = DOCS / "speed.md"
    page.write_text(filled(page.read_text(), markdown(result)))
    plot(result, DOCS / "benchmarks" / "speed.png")


if __name__ == "__main__":
    main()
