"""`smoljax eval` as a user calls it."""

import json

import numpy as np
import pytest
from cli_calls import call
from PIL import Image

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    lines = []
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
        question = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"a cat {index % 2}"},
        ]
        meta = {"kind": ["even", "odd"][index % 2]}
        lines.append({"id": f"r{index}", "images": [f"{index}.png"], "messages": messages, "meta": meta})
    (path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return path / "data.jsonl"


def fails(status, *args):
    code, out, err = call("eval", *args)
    assert (code, out, err.count("\n")) == (status, "", 1), (code, out, err)
    assert err.startswith("smoljax: error: ")
    return err


def test_one_json_object_and_a_line_a_sample(tiny_folder, data, tmp_path):
    written = tmp_path / "predictions.jsonl"
    args = ("-m", tiny_folder, "-d", data, "-t", "vqa", "--no-split", "--max-new-tokens", 4)
    code, out, err = call("eval", *args, "--predictions", written, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["task"] == "vqa"
    assert result["n"] == 4
    assert set(result["metrics"]) == {"exact", "soft", "exact/even", "exact/odd"}
    assert set(result["metrics"]["exact"]) == {"value", "low", "high", "n"}
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["r0", "r1", "r2", "r3"]
    assert all(line["answers"] == [f"a cat {index % 2}"] for index, line in enumerate(lines))
    assert result["metrics"]["exact"]["value"] == np.mean([line["exact"] for line in lines])
    assert "untrained" in err
    code, out, _ = call("eval", *args, "--kinds", "odd", "--limit", 3)
    assert code == 0
    assert "exact/odd" in out
    assert "exact/even" not in out


def test_wrong_calls_are_one_line(tiny_folder, data, tmp_path):
    given = ("-m", tiny_folder, "-d", data)
    assert "no task 'sing'" in fails(2, *given, "-t", "sing")
    assert "kinds belong to the task vqa" in fails(2, *given, "-t", "loss", "--kinds", "odd")
    assert "does not exist" in fails(2, *given, "-t", "vqa", "--predictions", tmp_path / "no" / "p.jsonl")
    assert "no boxes to locate" in fails(1, *given, "-t", "grounding")
    assert "not a data set" in fails(2, "-m", tiny_folder, "-d", "data.csv", "-t", "vqa")
    bad = tmp_path / "bad.jsonl"
    line = json.loads(data.read_text().splitlines()[0])
    good = {**line, "images": [str(data.parent / "0.png")]}
    (tmp_path / "broken.png").write_bytes((data.parent / "0.png").read_bytes()[:700])
    lines = [{**line, "images": ["gone.png"]}, {**line, "images": ["broken.png"], "id": "b"}, good]
    bad.write_text("\n".join(map(json.dumps, lines[:1])))
    assert "gone.png" in fails(1, "-m", tiny_folder, "-d", bad, "-t", "vqa")
    bad.write_text("\n".join(map(json.dumps, lines[1:])))
    message = fails(1, "-m", tiny_folder, "-d", bad, "-t", "vqa")
    assert "broken.png" in message
    assert "truncated" in message
    bad.write_text("\n".join(map(json.dumps, lines)))
    args = (
        "-m",
        tiny_folder,
        "-d",
        bad,
        "-t",
        "vqa",
        "--no-split",
        "--max-new-tokens",
        4,
        "--skip-bad",
        "--json",
    )
    code, out, err = call("eval", *args)
    assert code == 0, err
    assert (json.loads(out)["n"], json.loads(out)["skipped"]) == (1, 2)
    assert "record 0 left out" in err
    assert "record 1 left out" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("vqa", {"exact", "soft", "exact/objects", "reading", "exact/relation", "exact/unseen_pair"}),
        ("caption", {"cider_d", "bleu_4", "rouge_l", "object_attribute_f1", "relation_f1", "text_f1"}),
        ("retrieval", {"image_to_text/R@1", "text_to_image/R@10"}),
        ("grounding", {"pointing"}),
        ("loss", {"loss", "perplexity"}),
    ],
)
def test_scenes_from_end_to_end(tiny_folder, tmp_path, task, names):
    pytest.importorskip("tensorflow_datasets", reason="pip install 'smoljax[data]'")
    args = (
        "-m",
        tiny_folder,
        "-d",
        "tfds:scenes/tiny:test_compositional",
        "-t",
        task,
        "--no-split",
        "--json",
    )
    options = ("--limit", 6, "--max-new-tokens", 4, "--pointing", 2, "--predictions", tmp_path / "p.jsonl")
    code, out, err = call("eval", *args, *options)
    assert code == 0, err
    result = json.loads(out)
    assert names <= set(result["metrics"])
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == result["n"] >= 6
    assert {line["id"] for line in lines} == {f"test_compositional/{index}" for index in range(6)}
