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


def test_the_speed_page_is_drawn_from_its_result():
    from experiments.benchmarks.speed_page import PAGE, RESULT
    from smoljax.bench.report import markdown

    drawn = PAGE.read_text().split("from smoljax bench -->\n")[1].split("<!-- end of bench -->")[0]
    assert drawn == markdown(json.loads(RESULT.read_text()))


def test_what_rounding_costs_is_the_committed_result():
    page = (ROOT / "docs" / "speed.md").read_text()
    for row in json.loads((ROOT / "docs" / "benchmarks" / "quantised.json").read_text())["rows"]:
        text, eyes = row["smollm2-135m"], row["smolvlm-nano"]
        assert f"| {row['weights']} | {text['mb']:.0f} MB | {text['perplexity']:.3f} |" in page
        assert f"| {eyes['exact']['value']:.3f} | {eyes['cider_d']['value']:.3f} |" in page
