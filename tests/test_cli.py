"""The commands as a user calls them: results on standard output, one line on standard error, exit status."""

import json
import subprocess
import sys

import numpy as np
import pytest
from cli_calls import call
from PIL import Image

from smoljax.convert.native import METADATA_FILE

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny untrained model with its processor, in the native layout."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    assert call("init", "tiny", path)[0] == 0
    return path


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fails(status, *args):
    """The one line that a failing command prints."""
    code, out, err = call(*args)
    assert (code, out) == (status, ""), (code, out, err)
    assert err.startswith("smoljax: error: ")
    assert err.count("\n") == 1, err
    return err


def test_generate_json(folder, picture):
    code, out, _ = call(
        "generate", "-m", folder, "-i", picture, "-p", "What is it?", "--max-new-tokens", 5, "--json"
    )
    assert code == 0
    result = json.loads(out)
    assert out.count("\n") == 1
    assert set(result) == {
        "text",
        "token_ids",
        "prompt_tokens",
        "image_tokens",
        "tiles",
        "finish_reason",
        "timings",
    }
    assert {"load_s", "preprocess_s", "compile_s", "prefill_s", "decode_s", "decode_tokens_per_s"} <= set(
        result["timings"]
    )
    assert result["tiles"] * 4 == result["image_tokens"]
    assert 1 <= len(result["token_ids"]) <= 5
    assert result["finish_reason"] in ("stop", "length")


def test_generate_prints_the_text_alone_on_standard_output(folder, picture):
    args = ("generate", "-m", folder, "-i", picture, "-p", "What?", "--max-new-tokens", 5)
    code, out, err = call(*args)
    assert code == 0
    assert out == json.loads(call(*args, "--json")[1])["text"] + "\n"
    assert "untrained" in err


def test_generate_from_messages(folder, picture, tmp_path):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    (tmp_path / "chat.json").write_text(json.dumps([message]))
    rest = ("-m", folder, "-i", picture, "--max-new-tokens", 4, "--json")
    by_messages = json.loads(call("generate", *rest, "--messages", tmp_path / "chat.json")[1])
    by_prompt = json.loads(call("generate", *rest, "-p", "What?")[1])
    assert by_messages["token_ids"] == by_prompt["token_ids"]


def test_pictures_in_messages_are_relative_to_the_file(folder, picture, tmp_path):
    (tmp_path / "p.png").write_bytes(picture.read_bytes())
    message = {
        "role": "user",
        "content": [{"type": "image", "path": "p.png"}, {"type": "text", "text": "What?"}],
    }
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [message]}))
    code, out, _ = call(
        "preprocess", "-m", folder, "--messages", tmp_path / "chat.json", "-o", tmp_path / "f.npz", "--json"
    )
    assert code == 0
    assert json.loads(out)["tiles"] > 1


def test_preprocess_writes_what_the_contract_says(folder, picture, tmp_path):
    out_file = tmp_path / "fed.npz"
    code, out, _ = call("preprocess", "-m", folder, "-i", picture, "-p", "What?", "-o", out_file, "--json")
    assert code == 0
    result, fed = json.loads(out), np.load(out_file)
    assert fed["input_ids"].shape == (result["prompt_tokens"],)
    assert fed["pixel_values"].shape == (result["tiles"], 3, 32, 32)
    assert fed["tile_mask"].tolist() == [True] * result["tiles"]
    rows, cols = result["grid"][0]
    assert rows * cols + 1 == result["tiles"]
    for option, tiles in ((("--no-split",), 1), (("--longest-edge", 32), 1), (("--longest-edge", 64), 3)):
        code, out, _ = call(
            "preprocess", "-m", folder, "-i", picture, "-p", "What?", "-o", out_file, "--json", *option
        )
        assert json.loads(out)["tiles"] == tiles


def test_logits_agree_with_generate(folder, picture, tmp_path):
    args = ("-m", folder, "-i", picture, "-p", "What?", "--no-split")
    assert call("logits", *args, "-o", tmp_path / "scores.npz")[0] == 0
    scores = np.load(tmp_path / "scores.npz")
    assert scores["logits"].dtype == np.float32
    assert scores["logits"].shape == (len(scores["input_ids"]), 320)
    first = json.loads(call("generate", *args, "--max-new-tokens", 1, "--json")[1])["token_ids"][0]
    assert scores["logits"][-1].argmax() == first


def test_convert_both_ways_is_byte_equal(folder, tmp_path):
    code, out, _ = call("convert", folder, tmp_path / "hf", "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["to"], summary["tensors"], summary["parameters"]) == ("hf", 68, 66232)
    assert call("convert", tmp_path / "hf", tmp_path / "native")[0] == 0
    assert call("convert", tmp_path / "native", tmp_path / "again", "--to", "hf")[0] == 0
    for path in (tmp_path / "hf").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_converted_models_answer_the_same(folder, picture, tmp_path):
    assert call("convert", folder, tmp_path / "hf")[0] == 0
    rest = ("-i", picture, "-p", "What?", "--max-new-tokens", 6, "--json")
    texts = [json.loads(call("generate", "-m", m, *rest)[1])["token_ids"] for m in (folder, tmp_path / "hf")]
    assert texts[0] == texts[1]


def test_inspect_and_models(folder):
    code, out, _ = call("inspect", folder, "--json")
    report = json.loads(out)
    assert (code, report["tensors"], report["parameters"]) == (0, 68, 66232)
    assert report["memory_bytes"] == {"float32": 4 * 66232, "bfloat16": 2 * 66232}
    code, out, _ = call("inspect", "smolvlm-256m")
    assert code == 0
    assert "256,484,928" in out
    code, out, _ = call("models", "--json")
    names = {entry["name"]: entry["kind"] for entry in json.loads(out)["models"]}
    assert names["smollm2-135m"] == "fetchable"


@pytest.mark.parametrize(
    "command", ["generate", "preprocess", "logits", "convert", "export", "fetch", "init", "models", "inspect"]
)
def test_every_help_has_an_example(command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: smoljax {command}" in " ".join(out.split())


def test_module_and_console_script():
    run = subprocess.run([sys.executable, "-m", "smoljax", "--version"], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.startswith("smoljax ")
    run = subprocess.run(
        [sys.executable, "-m", "smoljax", "inspect", "nothing"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1


# Wrong calls: exit status 2.


def test_wrong_calls(folder, picture, tmp_path):
    assert "exactly one of" in fails(2, "generate", "-m", folder)
    assert "exactly one of" in fails(2, "generate", "-m", folder, "-p", "a", "--text", "b")
    assert "prompt is empty" in fails(2, "generate", "-m", folder, "-p", "")
    assert "no such folder" in fails(2, "generate", "-m", tmp_path / "nothing", "-p", "hi")
    assert "smoljax fetch smollm2-135m" in fails(2, "generate", "-m", "smollm2-135m", "-p", "hi")
    assert "top_p" in fails(2, "generate", "-m", folder, "-p", "hi", "--top-p", "1.5")
    assert "No such option" in fails(2, "generate", "-m", folder, "--pompt", "hi")
    assert "seed" in fails(2, "generate", "-m", folder, "-p", "hi", "--seed", 10**20)
    assert "dtype" in fails(2, "generate", "-m", folder, "-p", "hi", "--dtype", "int3")
    assert "positions" in fails(2, "generate", "-m", folder, "-p", "hi", "--max-new-tokens", 5000)
    assert ".npz" in fails(2, "preprocess", "-m", folder, "-p", "hi", "-o", tmp_path / "x.txt")
    assert "does not exist" in fails(2, "logits", "-m", folder, "-p", "hi", "-o", tmp_path / "no" / "x.npz")
    assert "known:" in fails(2, "init", "smolvlm-7b", tmp_path / "new")
    assert "nothing to fetch" in fails(2, "fetch", "unheard-of")


def test_more_places_than_pictures(folder, picture, tmp_path):
    message = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}],
    }
    (tmp_path / "chat.json").write_text(json.dumps([message]))
    line = fails(2, "generate", "-m", folder, "-i", picture, "--messages", tmp_path / "chat.json")
    assert "<image>" in line
    line = fails(2, "generate", "-m", folder, "--text", "<image> what is it?")
    assert "<image>" in line


# The work fails: exit status 1, and nothing is written.


def test_broken_pictures(folder, picture, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no picture")
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    for path in (tmp_path / "cut.png", tmp_path / "text.jpg", bomb, tmp_path / "missing.png", tmp_path):
        out_file = tmp_path / "out.npz"
        assert path.name in fails(1, "preprocess", "-m", folder, "-i", path, "-p", "What?", "-o", out_file)
        assert not out_file.exists()


def test_broken_models(folder, tmp_path):
    import shutil

    hf = tmp_path / "hf"
    assert call("convert", folder, hf)[0] == 0
    weights, config = (hf / "model.safetensors").read_bytes(), json.loads((hf / "config.json").read_text())

    def broken(name, change):
        path = tmp_path / name
        shutil.copytree(hf, path)
        change(path)
        line = fails(1, "convert", path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not [p for p in tmp_path.iterdir() if "out" in p.name], "scratch folders left behind"
        assert "no checkpoint" in line or str(path) in line
        return line

    def without(path):
        config_without = {key: value for key, value in config.items() if key != "text_config"}
        (path / "config.json").write_text(json.dumps(config_without))

    broken("truncated", lambda p: (p / "model.safetensors").write_bytes(weights[:-100]))
    broken("header", lambda p: (p / "model.safetensors").write_bytes(b"\xff" * 64 + weights[64:]))
    broken("wrong-folder", lambda p: [f.unlink() for f in p.iterdir()])
    broken("no-weights", lambda p: (p / "model.safetensors").unlink())
    broken("no-config-key", without)

    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / METADATA_FILE).write_text("{")
    assert "damaged" in fails(1, "generate", "-m", damaged, "-p", "hi")


def test_messages_that_are_no_json(folder, tmp_path):
    (tmp_path / "chat.json").write_text("{")
    assert "not valid JSON" in fails(1, "generate", "-m", folder, "--messages", tmp_path / "chat.json")
    (tmp_path / "chat.json").write_text('"hello"')
    assert "must hold" in fails(2, "generate", "-m", folder, "--messages", tmp_path / "chat.json")


def test_an_existing_destination_is_left_alone(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    fails(1, "convert", folder, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]


def test_traceback_only_with_debug():
    code, _, err = call("inspect", "nothing", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("smoljax: error: nothing: no such folder")


def test_a_closed_pipe_is_no_failure(folder):
    command = f"set -o pipefail; {sys.executable} -m smoljax inspect {folder} --full | head -1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_frames_in_a_folder(folder, tmp_path):
    for i in range(70):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i:03d}.png")
    args = ("preprocess", "-m", folder, "--video", tmp_path, "-p", "What?", "--json")
    assert "--fps" in fails(2, *args)
    code, out, err = call(*args, "--fps", 10)
    assert (code, json.loads(out)["tiles"], err) == (0, 7, "")


def test_a_picture_beside_one_in_the_messages(folder, picture, tmp_path):
    (tmp_path / "p.png").write_bytes(picture.read_bytes())
    message = {"role": "user", "content": [{"type": "image", "path": "p.png"}, {"type": "text", "text": "?"}]}
    (tmp_path / "chat.json").write_text(json.dumps([message]))
    assert "1 <image> place for 2 pictures" in fails(
        2, "preprocess", "-m", folder, "--messages", tmp_path / "chat.json", "-i", picture
    )


def test_prompt_from_standard_input(folder, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    piped = call("preprocess", "-m", folder, "-p", "-", "--json")[1]
    assert piped == call("preprocess", "-m", folder, "-p", "hello", "--json")[1]
