"""`vlm.serve` and `smoljax batch`: words and pictures in, texts out."""

import json

import numpy as np
import pytest
from cli_calls import call
from PIL import Image

import smoljax


@pytest.fixture(scope="module")
def vlm(tiny_folder):
    return smoljax.load(tiny_folder)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8))


@pytest.mark.slow
def test_texts_are_those_of_generate(vlm):
    samples = [
        {"prompt": "What?", "images": [picture(0)]},
        {"prompt": "Only words"},
        {"prompt": "What else?", "images": picture(0), "max_new_tokens": 5},
    ]
    served = vlm.serve(2, 512)
    wanted = [vlm.generate(**{"max_new_tokens": 9, **sample}) for sample in samples]
    assert served.generate(iter(samples), max_new_tokens=9) == wanted
    assert served.stats.tiles < 2 * vlm.prepare(**samples[0]).tiles[0]
    number = served.submit("Only words", max_new_tokens=3)
    (reply,) = served.run()
    assert (reply.id, reply.finish_reason, len(reply.token_ids)) == (number, "length", 3)
    assert reply.cached_tokens == reply.prompt_tokens - 1
    assert wanted[1].startswith(reply.text.rstrip("\ufffd"))


def chats(folder):
    picture(1).save(folder / "one.png")
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    more = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}
    answered = {"role": "assistant", "content": "Nowhere."}
    lines = [
        {"id": "a", "images": ["one.png"], "messages": [asked]},
        {"images": ["one.png"], "messages": [asked, answered]},
        {"id": "c", "images": ["one.png"], "conversations": [[more, answered], [asked]]},
        {
            "id": "d",
            "messages": [{"role": "user", "content": "Hello"}, answered, {"role": "user", "content": "?"}],
        },
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, [([asked], 1), ([asked], 1), ([more], 1), ([asked], 1), (lines[3]["messages"], 0)]


@pytest.mark.usefixtures("own_cache")
def test_the_command_answers_a_file_in_order(vlm, tiny_folder, tmp_path):
    path, talks = chats(tmp_path)
    common = (
        "batch",
        "-m",
        tiny_folder,
        "--requests",
        path,
        "--rows",
        2,
        "--slots",
        512,
        "--max-new-tokens",
        6,
    )
    code, out, err = call(*common)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    wanted = [
        vlm.generate(messages=talk, images=[picture(1)] * pictures, max_new_tokens=6)
        for talk, pictures in talks
    ]
    assert [answer["text"] for answer in answers] == wanted
    assert [answer["id"] for answer in answers] == ["a", "chats.jsonl:2", "c", "c", "d"]
    assert [answer.get("conversation") for answer in answers] == [None, None, 0, 1, None]
    assert set(answers[0]) == {"id", "text", "token_ids", "finish_reason", "prompt_tokens", "cached_tokens"}
    assert answers[1]["cached_tokens"] == answers[1]["prompt_tokens"] - 1
    assert "5 answers" in err
    code, out, err = call(*common, "-o", tmp_path / "answers.jsonl", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == answers
    assert summary["requests"] == 5
    assert summary["tokens"] == sum(len(answer["token_ids"]) for answer in answers)
    assert summary["cached_tokens"] == sum(answer["cached_tokens"] for answer in answers)
    assert summary["tokens_per_s"] > 0


@pytest.mark.usefixtures("own_cache")
def test_the_command_names_the_line_at_fault(tiny_folder, tmp_path):
    path, _ = chats(tmp_path)
    common = ("batch", "-m", tiny_folder, "--requests", path)
    assert "--out" in call(*common, "--json")[2]
    assert call(*common, "-o", path)[0] == 2
    code, out, err = call(*common, "--slots", 200, "--max-new-tokens", 190)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "chats.jsonl:1: " in err
    assert "200 slots" in err
    for line, told in (
        ('{"messages": [{"role": "user", "content": "?"}], "pictures": []}', "unknown key"),
        ('{"messages": [{"role": "assistant", "content": "?"}]}', "nothing is asked"),
        ('{"messages": "?"}', "no messages"),
        ('{"images": ["two.png"], "messages": []}', "no such picture"),
        ("[]", "JSON object"),
    ):
        path.write_text("\n" + line + "\n")
        code, out, err = call(*common)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert "chats.jsonl:2" in err
        assert told in err
