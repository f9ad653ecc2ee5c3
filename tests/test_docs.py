"""What the pages say: links lead somewhere, published figures are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

from experiments.parity.table import RESULTS, page

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def results():
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def test_the_parity_page_is_drawn_from_the_results():
    assert (ROOT / "docs" / "parity.md").read_text() == page(results())


def test_every_committed_comparison_passed():
    found = results()
    rows = found["model"]["rows"]
    assert {"256m-17-tiles", "256m-17-tiles-bf16-file", "256m-text-500"} <= {row["case"] for row in rows}
    for row in rows:
        assert row["largest_error"] <= 1e-4, row["case"]
        assert row["greedy_equal"], row["case"]
        assert row["greedy_tokens"] >= 64
    for row in found["processor"]["rows"]:
        assert row["passed"], row["name"]
        assert row["cases"] >= 300
    assert found["gguf"]["max_abs_logit_error"] <= 1e-3
    assert found["gguf"]["greedy_equal"]


def drawn(name, page=Path("docs/speed.md")):
    """What stands between the marks of a table of a page."""
    _, _, rest = (ROOT / page).read_text().partition(f"<!-- {name}, written by ")
    return rest.partition("\n")[2].partition(f"<!-- end of {name} -->")[0]


def test_the_speed_page_is_drawn_from_its_results():
    from experiments.benchmarks import products, quantised
    from experiments.benchmarks.speed_page import RESULT, ROUNDED, SINGLE, short
    from smoljax.bench.report import markdown

    result = json.loads(RESULT.read_text())
    assert drawn("bench") == markdown(result)
    assert drawn("speed", Path("README.md")) == short(result) + "\n"
    assert drawn("single products") == products.markdown(json.loads(SINGLE.read_text())) + "\n"
    rounded = json.loads(ROUNDED.read_text())
    assert [row["weights"] for row in rounded["weights"]] == list(quantised.WEIGHTS)
    assert [row["cache"] for row in rounded["cache"]] == list(quantised.CACHES)
    for of in ("weights", "cache"):
        assert drawn(f"rounded {of}") == quantised.markdown(rounded, of)
