"""The scenes dataset as files: its texts are those of its version, its bytes those of its seed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smoljax.data.scenes import CONFIGS, scene
from smoljax.data.scenes.blind import template
from smoljax.data.scenes.vocabulary import KINDS
from smoljax.errors import SmoljaxError

GOLDEN = Path(__file__).parents[1] / "golden" / "scenes.json"


def text_digest():
    digest = hashlib.sha256()
    for split in CONFIGS["tiny"]:
        for index in range(16):
            item = scene(split, index)
            said = [
                *item.captions,
                *item.facts,
                *(f"{q.question} {q.answer} {q.unseen_pair}" for q in item.questions),
            ]
            digest.update("\n".join(said).encode())
    return digest.hexdigest()


def test_texts_are_those_of_version_1():
    """Whoever changes what the data set says gives it a new version."""
    assert text_digest() == json.loads(GOLDEN.read_text())["texts_1.0.0"]


def files_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.array_record*"))
    }


def test_builds_are_equal_byte_by_byte_and_read_back(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from smoljax.data.scenes import blind_baseline, open_scenes

    one = open_scenes("tiny", tmp_path / "one")
    # In another process: the order of a protocol buffer's map is one process's own.
    code = (
        f"from smoljax.data.scenes import open_scenes; open_scenes('tiny', {os.fspath(tmp_path / 'two')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert len(files_of(tmp_path / "one")) == 4
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert {name: split.num_examples for name, split in one.info.splits.items()} == CONFIGS["tiny"]
    source = one.as_data_source("test")
    item = scene("test", 5)
    example = source[5]
    assert example["id"] == b"test/5"
    np.testing.assert_array_equal(example["image"], item.paint()[0])
    np.testing.assert_array_equal(example["cells"], item.paint()[1])
    assert [a.decode() for a in example["questions"]["answer"]] == [q.answer for q in item.questions]
    assert [tuple(box) for box in example["objects"]["box"]] == [t.box for t in item.layout.things]
    # Opening again draws nothing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*") if path.is_file()}
    open_scenes("tiny", tmp_path / "one")
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*") if path.is_file()
    }
    scores = blind_baseline(one, "train", "test")
    assert set(scores) == {*KINDS, "all"}
    assert 0.1 < scores["all"] < 0.7


def test_processes_give_what_one_gives(monkeypatch):
    from smoljax.data.scenes import build

    monkeypatch.setitem(build.CONFIGS, "some", {"test": 50})
    monkeypatch.setattr(build, "_CHUNK", 8)
    drawn = list(build.generate("some", "test", 0))
    assert [index for index, _ in drawn] == list(range(50))
    assert [example["id"] for _, example in drawn] == [f"test/{index}" for index in range(50)]
    for index in (0, 7, 8, 49):
        assert drawn[index][1]["image"] == scene("test", index).example()["image"]


def test_a_process_that_ends_early_is_an_error(monkeypatch):
    from smoljax.data.scenes import build

    monkeypatch.setitem(build.CONFIGS, "some", {"no_such_split": 50})
    monkeypatch.setattr(build, "_CHUNK", 8)
    with pytest.raises(SmoljaxError, match="ended early"):
        list(build.generate("some", "no_such_split", 0))


def test_blind_templates():
    assert template("Is the red circle left of the small blue square?") == (
        "Is … left of …?",
        ["the red circle", "the small blue square"],
    )
    assert template("What shape is the red object?")[0] == "What shape is …?"
    assert template("Is there a striped red shape?")[0] == "Is there a _ _ shape?"
    assert template("How many crosses are there?")[0] == "How many _ are there?"


if __name__ == "__main__":
    print(json.dumps({"texts_1.0.0": text_digest()}))
