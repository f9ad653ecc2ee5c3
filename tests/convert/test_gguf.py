"""Reading GGUF: exact values, RoPE order, config, and what goes wrong with bad files."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from smoljax.cli.describe import describe
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves
from smoljax.convert.convert import open_checkpoint
from smoljax.convert.gguf import gguf_name, load_gguf, unpermute
from smoljax.errors import SmoljaxError, UsageError

gguf = pytest.importorskip("gguf", reason='needs pip install "smoljax[gguf]"')

D, F, V, LAYERS, HEADS, KV_HEADS, H = 64, 96, 32, 2, 4, 2, 16
BYTES = "abcdefghijklmnopqrstuvwxyzĠ012"
KINDS = {
    "token_embd": "Q8_0",
    "attn_v": "Q8_0",
    "ffn_gate": "Q4_1",
    "ffn_up": "Q4_1",
    "attn_q": "F16",
    "attn_k": "BF16",
}


def tensors(seed: int = 0, tied: bool = True) -> dict[str, np.ndarray]:
    """A model's tensors as GGUF names and shapes them, float32."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    if not tied:
        shapes["output.weight"] = (V, D)
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (D,),
            f"blk.{i}.attn_q.weight": (HEADS * H, D),
            f"blk.{i}.attn_k.weight": (KV_HEADS * H, D),
            f"blk.{i}.attn_v.weight": (KV_HEADS * H, D),
            f"blk.{i}.attn_output.weight": (D, HEADS * H),
            f"blk.{i}.ffn_norm.weight": (D,),
            f"blk.{i}.ffn_gate.weight": (F, D),
            f"blk.{i}.ffn_up.weight": (F, D),
            f"blk.{i}.ffn_down.weight": (D, F),
        }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    weights: dict[str, np.ndarray],
    *,
    kinds: dict[str, str] | None = None,
    drop: tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """A GGUF file of these tensors; `drop` leaves metadata keys out, `extra` adds uint32 or string ones."""
    writer = gguf.GGUFWriter(path, architecture)
    numbers: dict[str, Any] = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 12345.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        **(extra or {}),
    }
    for key, value in numbers.items():
        if key not in drop:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", *BYTES, "ab"])
    writer.add_token_types([3] + [1] * (len(BYTES) + 1))
    writer.add_token_merges(["a b"])
    for name, array in weights.items():
        kind = gguf.GGMLQuantizationType[(kinds or {}).get(name.split(".")[-2], "F32")]
        data = array if kind.name == "F32" else gguf.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def flat(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return dict(iterate_leaves(checkpoint.params))


def rounded(array: np.ndarray, kind: str) -> np.ndarray:
    """What a value becomes in a storage type, by formulas of the format's own (not by the gguf package)."""
    if kind == "F32":
        return array
    if kind in ("F16", "BF16"):
        return array.astype(np.float16 if kind == "F16" else ml_dtypes.bfloat16).astype(np.float32)
    blocks = array.reshape(-1, 32)
    half = lambda x: x.astype(np.float16).astype(np.float32)  # noqa: E731
    if kind == "Q8_0":
        scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        whole = np.trunc(blocks / scale + np.copysign(np.float32(0.5), blocks))
        return (half(scale) * whole).reshape(array.shape)
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    scale = (high - low) / np.float32(15)
    whole = np.clip(np.trunc((blocks - low) / scale + np.float32(0.5)), 0, 15)
    return (half(scale) * whole + half(low)).reshape(array.shape)


@pytest.mark.parametrize("tied", [True, False])
def test_every_value_and_shape(tmp_path: Path, tied: bool) -> None:
    weights = tensors(tied=tied)
    checkpoint = load_gguf(write(tmp_path / "m.gguf", weights, kinds=KINDS))
    found = flat(checkpoint)
    assert len(found) == len(weights) == checkpoint.num_tensors
    assert checkpoint.config.tie_embeddings is tied
    for path, array in found.items():
        name = gguf_name(path)
        kind = KINDS.get(name.split(".")[-2], "F32")
        expected = rounded(weights[name], kind)
        if "attn_q" in name or "attn_k" in name:
            order = [
                h * H + 2 * j + s for h in range(len(expected) // H) for s in range(2) for j in range(H // 2)
            ]
            expected = expected[order]
        expected = expected.T if path.endswith("/kernel") else expected
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_config_comes_from_the_metadata(tmp_path: Path) -> None:
    config = load_gguf(write(tmp_path / "m.gguf", tensors())).config
    text = config.text
    assert (text.vocab_size, text.hidden_size, text.intermediate_size, text.num_layers) == (V, D, F, LAYERS)
    assert (text.num_heads, text.num_kv_heads, text.head_dim, text.max_positions) == (HEADS, KV_HEADS, H, 128)
    assert (text.rope_theta, text.rms_norm_eps) == (12345.0, 1e-5)  # as written, not as float32 prints
    assert (config.vision, config.model_type) == (None, "llama")


def test_head_width_of_its_own(tmp_path: Path) -> None:
    """Heads whose widths do not sum to the model width, as `attention.key_length` allows."""
    weights = tensors()
    extra = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    extra |= {f"llama.attention.{key}_length": 2 * H for key in ("key", "value")}
    text = load_gguf(write(tmp_path / "m.gguf", weights, extra=extra)).config.text
    assert (text.num_heads, text.num_kv_heads, text.head_dim) == (2, 1, 2 * H)


def test_unpermuted_rows_rotate_as_the_interleaved_ones_do() -> None:
    """q·k under half-split RoPE on un-permuted rows equals q·k under GGUF's neighbouring-pair RoPE."""
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((HEADS * H, D)), rng.standard_normal((HEADS * H, D))
    x, y = rng.standard_normal(D), rng.standard_normal(D)
    angle = lambda position: position * 100.0 ** (-np.arange(H // 2) / (H // 2))  # noqa: E731

    def interleaved(vector: np.ndarray, position: int) -> np.ndarray:
        pairs = vector.reshape(HEADS, H // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle(position))
        return np.stack([turned.real, turned.imag], -1).reshape(HEADS, H)

    def half_split(vector: np.ndarray, position: int) -> np.ndarray:
        first, second = np.split(vector.reshape(HEADS, H), 2, axis=-1)
        cos, sin = np.cos(angle(position)), np.sin(angle(position))
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    expected = (interleaved(query @ x, 7) * interleaved(key @ y, 3)).sum(-1)
    found = (half_split(unpermute(query, H) @ x, 7) * half_split(unpermute(key, H) @ y, 3)).sum(-1)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    wrong = (half_split(query @ x, 7) * half_split(key @ y, 3)).sum(-1)
    assert np.abs(wrong - expected).max() > 1e-2


def test_bfloat16_result(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors())
    wide, narrow = flat(load_gguf(path)), flat(load_gguf(path, dtype="bfloat16"))
    for name, array in narrow.items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array, wide[name].astype(ml_dtypes.bfloat16))
    with pytest.raises(UsageError, match="float32, bfloat16"):
        load_gguf(path, dtype="int8")


def test_files_beside_the_weights(tmp_path: Path) -> None:
    files = load_gguf(write(tmp_path / "m.gguf", tensors())).files
    config = json.loads(files["config.json"])
    assert (config["architectures"], config["rope_theta"]) == (["LlamaForCausalLM"], 12345.0)
    assert config["tie_word_embeddings"] is True
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 0, "eos_token_id": 0}
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)


def test_opened_without_dequantising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", tensors(), kinds=KINDS)
    loaded = load_gguf(path)
    monkeypatch.setattr("gguf.dequantize", lambda *args: pytest.fail("a weight was read"))
    opened = open_checkpoint(path)
    assert (opened.params, opened.config, opened.files) == ({}, loaded.config, loaded.files)
    assert (opened.notes, opened.stored_dtype) == (loaded.notes, loaded.stored_dtype)
    assert opened.stored_dtype.startswith("9 F32, 4 Q4_1, 3 Q8_0, ")
    report = describe(str(path))
    assert (report["stored_dtype"], report["tensors"]) == (loaded.stored_dtype, loaded.num_tensors)
    assert report["parameters"] == loaded.num_parameters


def test_the_whole_difference_is_listed(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.0.attn_q.weight"], weights["blk.1.ffn_norm.weight"]
    weights["blk.0.attn_q.bias"] = np.zeros(D, np.float32)
    weights["output_norm.weight"] = np.zeros(D + 1, np.float32)
    with pytest.raises(SmoljaxError) as caught:
        load_gguf(write(tmp_path / "m.gguf", weights))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "m.gguf",
        "blk.0.attn_q.weight",
        "blk.1.ffn_norm.weight",
        "blk.0.attn_q.bias",
        "output_norm.weight",
    ):
        assert part in message


def test_not_finite_values_are_named(tmp_path: Path) -> None:
    weights = tensors()
    weights["blk.1.ffn_down.weight"][3, 4] = np.nan
    with pytest.raises(SmoljaxError, match=r"not finite in blk\.1\.ffn_down\.weight$"):
        load_gguf(write(tmp_path / "m.gguf", weights))


@pytest.mark.parametrize(
    "key", ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon", "llama.block_count"]
)
def test_missing_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(SmoljaxError, match=rf"m\.gguf: the metadata key {key} is missing"):
        load_gguf(write(tmp_path / "m.gguf", tensors(), drop=(key,)))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"llama.rope.scaling.type": "linear"}, "no llama.rope.scaling.type"),
        ({"llama.expert_count": 8}, "no llama.expert_count"),
        ({"llama.rope.scale_linear": 0.5}, "no llama.rope.scale_linear"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8"),
        ({"llama.vocab_size": V + 1}, f"vocab_size is {V + 1}"),
        ({"llama.block_count": 4_000_000_000}, "block_count is 4000000000"),
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.attention.head_count_kv": 3}, "do not share 3"),
        ({"llama.block_count": "two"}, "block_count is 'two'"),
        ({"split.count": 2}, "one of 2 parts"),
    ],
)
def test_metadata_that_the_decoder_does_not_have(tmp_path: Path, extra: dict[str, Any], words: str) -> None:
    with pytest.raises(SmoljaxError, match=r"m\.gguf: ") as caught:
        load_gguf(write(tmp_path / "m.gguf", tensors(), extra=extra))
    assert words in str(caught.value)


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(SmoljaxError, match="architecture 'gemma'; only 'llama'"):
        load_gguf(write(tmp_path / "m.gguf", tensors(), architecture="gemma"))


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", tensors()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 20, 100, 700, 1500, *range(2000, len(whole), len(whole) // 20), len(whole) - 40]:
        cut.write_bytes(whole[:size])
        with pytest.raises(SmoljaxError, match=r"cut\.gguf: not a whole GGUF file"):
            load_gguf(cut)


def test_garbage(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    whole = bytearray(write(tmp_path / "m.gguf", tensors()).read_bytes())
    path = tmp_path / "bad.gguf"
    path.write_bytes(rng.bytes(4096))
    with pytest.raises(SmoljaxError, match="not a whole GGUF file"):
        load_gguf(path)
    messages = []
    for _ in range(60):  # flipped bytes in the header: either still a model, or one clear line
        damaged = bytearray(whole)
        for offset in rng.integers(4, 1800, 3):
            damaged[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_gguf(path)
        except SmoljaxError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all("bad.gguf: " in message and "\n" not in message for message in messages)
    damaged = bytearray(whole)
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    damaged[at : at + 8] = (2**62).to_bytes(8, "little")  # an array that claims 2^62 elements
    path.write_bytes(damaged)
    with pytest.raises(SmoljaxError, match="not a whole GGUF file"):
        load_gguf(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SmoljaxError, match=r"none\.gguf: no such file"):
        load_gguf(tmp_path / "none.gguf")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(SmoljaxError, match=r'pip install "smoljax\[gguf\]"'):
        load_gguf(tmp_path / "m.gguf")
