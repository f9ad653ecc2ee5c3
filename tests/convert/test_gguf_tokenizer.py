"""The tokenizer rebuilt from GGUF metadata; and, for the fetched SmolLM2, equality with the published one.

The golden digest is made from the published tokenizer.json (SHA-256 5ece781d…8331a) by

    python tests/convert/test_gguf_tokenizer.py TOKENIZER.json [MODEL.gguf]

which also counts the strings on which the tokenizer rebuilt from MODEL.gguf differs (there must be none).
"""

import hashlib
import json
import random
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from smoljax.convert.gguf_tokenizer import rebuild_tokenizer, tokenizer_files
from smoljax.errors import SmoljaxError
from smoljax.presets import tiny

GOLDEN_COUNT = 4000
GOLDEN_DIGEST = "481c491a2f6d8368b8e4ac6a53d6d41768c1f4bc5a06ea875fce1cc9060d1842"

# Pieces of random texts: ranges of code points, and strings that are easy to get wrong.
RANGES = (
    (0x00, 0x20), (0x20, 0x7F), (0x7F, 0xA1), (0xA1, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700),
    (0x900, 0xE00), (0x1100, 0x1200), (0x2000, 0x2070), (0x20D0, 0x2100), (0x2150, 0x2190),
    (0x2460, 0x2500), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xE010),
    (0xFB50, 0xFE00), (0xFF00, 0xFFF0), (0x10000, 0x10500), (0x1D400, 0x1D800), (0x1F300, 0x1FB00),
    (0x20000, 0x20100), (0xE0000, 0xE0080), (0xF0000, 0xF0010), (0x10FFF0, 0x110000),
)  # fmt: skip
PIECES = (
    "  ", "   ", " " * 9, "\n", "\n\n", "\r\n", "\t\t", " \n ", "\u00a0", "\u3000", "\u200b", "\ufeff",
    "0", "42", "1999", "3.14159", "1,000,000", "٣٤٥", "１２", "²", "½", "Ⅷ", "a\u0301", "e\u0301\u0323",
    "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👍🏽", "🇫🇷", "שלום", "مرحبا", "\u202e", "日本語",
    "한국어", "ไทย", "I'm", "you'LL", "we've", "it’s", "naïve", "ﬁ", "ẞ", "İ", "_", "__init__",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "<|im_", "Hello", " world", " the",
    "def f(x):", "    return", "https://a.b/c?d=1", "!!!", "...", "—",
)  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Strings of 1 to 40 pieces; only `random()` is used, which Python keeps the same between versions."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.4:
            return PIECES[int(rng.random() * len(PIECES))]
        low, high = (0, 0x110000) if kind > 0.95 else RANGES[int(rng.random() * len(RANGES))]
        code = low + int(rng.random() * (high - low))
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(piece() for _ in range(1 + int(rng.random() * 40))) for _ in range(count)]


def digest(tokenizer: Tokenizer, texts: list[str]) -> str:
    """SHA-256 of all ids."""
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def metadata(**changes: Any) -> dict[str, Any]:
    """A whole byte alphabet, a few merges, one control and one user-defined token."""
    tokens = ["<|end|>", "<mark>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "12", "Ġa", "Ġab"]
    content = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 4] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["a b", "1 2", "Ġ a", "Ġ ab"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    content.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in content.items() if value is not None}


def pieces(text: str, **changes: Any) -> list[str]:
    return rebuild_tokenizer(metadata(**changes), "m.gguf").encode(text, add_special_tokens=False).tokens


def test_merges_spaces_and_digits() -> None:
    assert pieces("ab ab") == ["ab", "Ġab"]
    assert pieces("ab12") == ["ab", "1", "2"]  # every digit alone, although there is a merge
    assert pieces("ab12", pre="gpt-2") == ["ab", "12"]


def test_added_tokens() -> None:
    tokenizer = rebuild_tokenizer(metadata(), "m.gguf")
    ids = tokenizer.encode("ab<|end|>ab<mark>").ids
    assert [ids[1], ids[3]] == [0, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abab<mark>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "ab<|end|>ab<mark>"
    assert tokenizer.get_vocab_size() == len(metadata()["tokenizer.ggml.tokens"])


def test_every_text_comes_back() -> None:
    tokenizer = rebuild_tokenizer(metadata(), "m.gguf")
    for text in random_texts(300, seed=1):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bos_is_added_only_where_the_file_says_so() -> None:
    assert rebuild_tokenizer(metadata(), "m.gguf").encode("ab").tokens == ["ab"]
    asked = rebuild_tokenizer(metadata(add_bos_token=True), "m.gguf")
    assert asked.encode("ab").tokens == ["<mark>", "ab"]
    assert asked.encode("ab", add_special_tokens=False).tokens == ["ab"]


def test_files() -> None:
    text = tiny().text
    files = tokenizer_files(metadata(), text, "m.gguf")
    assert Tokenizer.from_buffer(files["tokenizer.json"]).encode(" ab").tokens == ["Ġab"]
    config = json.loads(files["tokenizer_config.json"])
    assert config["chat_template"] == "{{ messages[0]['content'] }}"
    roles = {role: config[f"{role}_token"] for role in ("bos", "eos", "pad", "unk")}
    assert roles == {"bos": "<mark>", "eos": "<|end|>", "pad": "<|end|>", "unk": "<|end|>"}
    assert config["model_max_length"] == text.max_positions
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    two_stops = tokenizer_files(metadata(eot_token_id=1), text, "m.gguf")
    assert json.loads(two_stops["generation_config.json"])["eos_token_id"] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llama"}, "only 'gpt2'"),
        ({"pre": "llama-bpe"}, "known: smollm, gpt-2"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["a zzz"]}, "do not fit the vocabulary"),
        ({"merges": ["a"]}, "do not fit the vocabulary"),
        ({"merges": [1, 2]}, "no list of strings"),
        ({"token_type": [1, 1]}, "token_type"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"eos_token_id": 9999}, "eos_token_id is 9999"),
        ({"add_bos_token": True, "bos_token_id": None}, "without a bos_token_id"),
        ({"tokens": [str(i) for i in range(400)], "token_type": None}, "400 tokens but only 320"),
    ],
)
def test_what_cannot_be_rebuilt(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SmoljaxError, match=r"m\.gguf: ") as caught:
        tokenizer_files(metadata(**changes), tiny().text, "m.gguf")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_smollm2_equals_the_published_tokenizer(smollm2) -> None:
    from smoljax.convert.native import FILES_FOLDER

    data = (smollm2 / FILES_FOLDER / "tokenizer.json").read_bytes()
    assert digest(Tokenizer.from_buffer(data), random_texts(GOLDEN_COUNT)) == GOLDEN_DIGEST


def main(published: str, gguf: str | None = None) -> None:
    texts = random_texts(GOLDEN_COUNT)
    wanted = Tokenizer.from_file(published)
    print(f"{len(texts)} strings, digest of {published}: {digest(wanted, texts)}")
    if gguf:
        from smoljax.convert.gguf import load_gguf

        rebuilt = Tokenizer.from_buffer(load_gguf(gguf).files["tokenizer.json"])
        differ = [text for text in texts if rebuilt.encode(text).ids != wanted.encode(text).ids]
        total = sum(len(wanted.encode(text).ids) for text in texts)
        planes = sorted({ord(letter) >> 16 for text in texts for letter in text})
        print(f"{gguf}: {len(differ)} of {len(texts)} strings differ ({total} ids, planes {planes})")


if __name__ == "__main__":
    main(*sys.argv[1:])
