"""The notebooks: script and notebook are one, what is committed was run here cleanly, and it runs again."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the notebooks extra is not installed")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_and_notebook_are_in_sync(script):
    paired = script.with_suffix(".ipynb")
    assert paired.exists(), f"make it: jupytext --sync {script} && jupyter execute --inplace {paired}"
    hint = f"bring them together: jupytext --sync {script} && jupyter execute --inplace {paired}"
    assert cells(jupytext.read(script)) == cells(jupytext.read(paired)), hint


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_clean_and_small(script):
    path = script.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "not run from top to bottom"
    )
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"/(home|root|Users|tmp|work)/|[A-Z]:\\", text), text
    assert path.stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "model"),
    [(script, "as it is here") for script in SCRIPTS] + [(FOLDER / "quickstart.py", "nothing fetched")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_notebook_runs(script, model, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a notebook is run as its reader runs it
    if model == "nothing fetched":
        monkeypatch.setenv("SMOLJAX_CACHE", str(tmp_path / "cache"))
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    client.execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    if script.stem == "quickstart":
        assert "every byte the same: True" in printed
        assert model != "nothing fetched" or "Going on with the tiny untrained model" in printed
    if script.stem == "embedding_space":
        assert "layer 5: row" in printed
    if script.stem == "colab":
        assert "50 steps, finished: False\n100 steps, finished: True" in printed
        assert "the same: True" in printed
    if script.stem == "training":
        assert "500 steps" in printed
        assert "refused: another run: seed was 0, now 1" in printed
        right = dict(re.findall(r"^(\S.*\S) +([\d.]+)% right", printed, re.MULTILINE))
        known, guessed = float(right["known pictures"]), float(right["known pictures, all grey"])
        assert known > guessed + 12, printed  # it learned to look, at least at these
