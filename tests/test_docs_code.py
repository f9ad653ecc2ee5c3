"""Every Python block of the README and of docs/ runs as it stands, each page's blocks in order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
LONG = ("importing.md", "grounding.md", "training.md")  # those that compile or train most
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """(line of its first line, code) of every fenced block marked python, those marked no-run left out."""
    found = []
    for match in _FENCE.finditer(text):
        language, *flags = match["info"].split() or [""]
        if language == "python" and "no-run" not in flags:
            found.append((text.count("\n", 0, match.start("code")) + 1, match["code"]))
    return found


def test_blocks_are_found_with_their_lines():
    text = "a\n```python\nx = 1\n```\n```python no-run\ny\n```\n```\nz\n```\n\n```python\nx = 2\n```\n"
    assert blocks(text) == [(3, "x = 1\n"), (13, "x = 2\n")]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=pytest.mark.slow if page.name in LONG else ()) for page in PAGES],
)
def test_code_of_a_page_runs(page, monkeypatch, tmp_path):
    found = blocks(page.read_text(encoding="utf-8"))
    if not found:
        pytest.skip("no Python block to run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    namespace = {"__name__": f"docs_{page.stem}"}
    for line, code in found:
        # Blank lines in front make tracebacks name the page's own lines.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
