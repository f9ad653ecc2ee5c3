"""Tokens: round trips, streaming, special ids looked up, the real vocabulary where it is at hand."""

import random

import pytest

from smoljax.errors import SmoljaxError
from smoljax.models import load_processor
from smoljax.processing import Tokenizer
from smoljax.processing.released import extend_tokenizer
from smoljax.processing.testing import toy_backend, toy_tokenizer

TEXTS = ["", " ", "Hello, world!", "a\n\nb 12", "naïve 你好 😀👩‍🚀 \x00\x7f\u202e", "é" * 50]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text):
    tokenizer = toy_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_looked_up():
    tokenizer = toy_tokenizer()
    assert len(tokenizer) == 302
    assert [tokenizer.image_id, tokenizer.token_id("<end_of_utterance>")] == [300, 301]
    assert tokenizer.token_id("<|im_start|>") == 256
    assert tokenizer.token_id("<row_6_col_6>") == tokenizer.token_id("<row_1_col_1>") + 35
    assert tokenizer.token_id("<row_7_col_1>") is None
    assert tokenizer.encode("<image><end_of_utterance>") == [300, 301]
    assert tokenizer.decode([300, 301]) == ""
    assert tokenizer.decode([300, 301], skip_special=False) == "<image><end_of_utterance>"


def test_streaming_equals_decoding_at_once():
    tokenizer = toy_tokenizer()
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(302) for _ in range(draw.randrange(30))]
        if draw.random() < 0.5:
            ids = tokenizer.encode("".join(draw.choice("aé你😀\ufffd \n") for _ in range(8)))
        stream = tokenizer.incremental()
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_a_character_waits_for_its_last_byte():
    tokenizer = toy_tokenizer()
    stream = tokenizer.incremental()
    assert [stream.push(token) for token in tokenizer.encode("é!")] == ["", "é", "!"]
    stream.push(tokenizer.encode("é")[0])
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_settings_that_would_cut_tokens_are_dropped():
    backend = toy_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    tokenizer = Tokenizer.from_bytes(backend.to_str().encode())
    assert len(tokenizer.encode("a longer text")) == 13


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version": "1.0"', b"\xff\xfe"])
def test_a_broken_file_is_one_line(data):
    with pytest.raises(SmoljaxError, match=r"tokenizer\.json: not a readable tokenizer") as caught:
        Tokenizer.from_bytes(data)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def real_tokenizer(smollm2):
    return Tokenizer.from_bytes(extend_tokenizer(load_processor(smollm2).files["tokenizer.json"]))


def test_the_released_vocabulary(real_tokenizer):
    assert len(real_tokenizer) == 49280
    assert real_tokenizer.image_id == 49190
    assert real_tokenizer.token_id("<row_2_col_3>") == 49161
    assert real_tokenizer.token_id("<end_of_utterance>") == 49279
    assert real_tokenizer.encode("Hello, world!") == [19556, 28, 905, 17]
    assert real_tokenizer.encode("User:\n") == [11126, 42, 198]
    assert real_tokenizer.encode("\n\n") == [1116]
    assert real_tokenizer.encode("a\n\nb") == [81, 198, 198, 82]


def test_digits_are_split_by_the_file_and_not_by_transformers_5(real_tokenizer):
    newlines, one = real_tokenizer.encode("\n\n")[0], real_tokenizer.encode("1")[0]
    assert real_tokenizer.encode("\n\n1") == [newlines, one]
    assert real_tokenizer.like_transformers_5().encode("\n\n1") == [198, 198, one]
    assert real_tokenizer.encode("\n\n1") == [newlines, one]
