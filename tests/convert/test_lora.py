"""LoRA folders merged at conversion, against the formula; against peft in test_parity.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_helpers import Folder, tiny_text, write

from smoljax import presets
from smoljax.convert.convert import convert, load_checkpoint, open_checkpoint
from smoljax.convert.hf import load_hf
from smoljax.errors import SmoljaxError, UsageError

Q = "model.text_model.layers.1.self_attn.q_proj"
PATCH = "model.vision_model.embeddings.patch_embedding"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False}


def adapter(path: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    write(path, {f"base_model.model.{name}": array.astype(np.float32) for name, array in tensors.items()})
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    return path


def pair(module: str, rank: int = 4, rows: int = 32, columns: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        f"{module}.lora_A.weight": rng.standard_normal((rank, columns)),
        f"{module}.lora_B.weight": rng.standard_normal((rows, rank)),
    }


def q_kernel(checkpoint) -> np.ndarray:
    return checkpoint.params["decoder"]["layers_1"]["attention"]["q"]["kernel"].astype(np.float32)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 2}}, 0.5),
        ({"alpha_pattern": {r"layers\.2\.self_attn\.q_proj": 2}}, 2.0),
    ],
)
def test_formula(tmp_path, folder: Folder, config, scaling):
    tensors = pair(Q)
    path = adapter(tmp_path / "lora", tensors, base_model_name_or_path=str(folder.path), **config)
    before, after = load_hf(folder.path), load_checkpoint(path)
    update = scaling * tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]
    np.testing.assert_allclose(q_kernel(after), q_kernel(before) + update.T, atol=1e-5)
    assert after.num_tensors == before.num_tensors
    changed = before.params["decoder"]["layers_0"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(changed, after.params["decoder"]["layers_0"]["attention"]["q"]["kernel"])
    summary = convert(path, tmp_path / "out", to="hf")
    assert (summary.source_kind, summary.tensors) == ("lora", 68)
    np.testing.assert_array_equal(q_kernel(load_hf(tmp_path / "out")), q_kernel(after))


def test_bfloat16_base_keeps_its_dtype(tmp_path, make_folder):
    base = make_folder(dtype="bfloat16")
    after = load_checkpoint(adapter(tmp_path / "lora", pair(Q)), base=base.path)
    assert after.dtype == "bfloat16"
    assert load_checkpoint(tmp_path / "lora", "float32", base=base.path).dtype == "float32"


def test_patch_convolution_and_replaced_module(tmp_path, folder: Folder):
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((4, 3, 8, 8)), rng.standard_normal((24, 4, 1, 1))
    head = rng.standard_normal((320, 32))
    tensors = {f"{PATCH}.lora_A.weight": down, f"{PATCH}.lora_B.weight": up, "lm_head.weight": head}
    path = adapter(tmp_path / "lora", tensors)
    (path / "chat_template.jinja").write_bytes(b"new")
    before, after = load_hf(folder.path), load_checkpoint(path, base=folder.path)
    update = 2.0 * up.reshape(24, 4) @ down.reshape(4, -1)
    old, new = (c.params["vision"]["patch_embedding"]["kernel"] for c in (before, after))
    np.testing.assert_allclose(new, old + update.T, atol=1e-4)
    np.testing.assert_array_equal(after.params["embedding"]["head"], head.astype(np.float32))
    assert after.files["chat_template.jinja"] == b"new"
    assert after.files["tokenizer.json"] == before.files["tokenizer.json"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"r": 8}, "rank 4, but the config says 8"),
        ({"r": None}, "r or lora_alpha"),
        ({"use_dora": True}, "must have lora_A, lora_B, lora_magnitude_vector"),
    ],
)
def test_unsupported_options(tmp_path, folder: Folder, config, words):
    path = adapter(tmp_path / "lora", pair(Q), **config)
    with pytest.raises(SmoljaxError, match=words):
        convert(path, tmp_path / "out", base=folder.path)
    assert not (tmp_path / "out").exists()


def test_tensors_that_fit_nothing(tmp_path, folder: Folder):
    for i, (tensors, words) in enumerate(
        [
            (pair("model.text_model.layers.9.self_attn.q_proj"), r"the base has no .*layers\.9"),
            (pair(Q, columns=16), "do not make"),
            ({f"{Q}.lora_A.weight": np.ones((4, 32))}, "has lora_A, must have lora_A, lora_B"),
            ({"lm_head.weight": np.ones((5, 32))}, r"lm_head\.weight is \[5, 32\], the base has \[320, 32\]"),
            ({k: v * np.nan for k, v in pair(Q).items()}, f"NaN or infinite values after merging in {Q}"),
        ]
    ):
        with pytest.raises(SmoljaxError, match=words):
            load_checkpoint(adapter(tmp_path / f"lora{i}", tensors), base=folder.path)


def test_base_that_is_not_here(tmp_path, folder: Folder):
    path = adapter(tmp_path / "lora", pair(Q), base_model_name_or_path="HuggingFaceTB/SmolVLM-256M-Instruct")
    hint = rf"smoljax convert {path} OUT --base MODEL"
    with pytest.raises(SmoljaxError, match=rf"'HuggingFaceTB/SmolVLM-256M-Instruct' is no folder.*{hint}"):
        load_checkpoint(path)

    def no_such_model(name: str) -> Path:
        raise UsageError(f"{name}: no such folder or file")

    with pytest.raises(SmoljaxError, match=rf"is not on this machine.*{hint}"):
        load_checkpoint(path, resolve=no_such_model)
    with pytest.raises(SmoljaxError, match=r"names no base .*--base MODEL"):
        load_checkpoint(adapter(tmp_path / "nameless", pair(Q)))
    with pytest.raises(SmoljaxError, match="LoRA folder itself"):
        load_checkpoint(path, base=path)
    with pytest.raises(UsageError, match="takes no base"):
        load_checkpoint(folder.path, base=folder.path)


def test_base_that_has_a_name(tmp_path, folder: Folder):
    path = adapter(tmp_path / "lora", pair(Q), base_model_name_or_path="owner/name")
    (path / "chat_template.jinja").write_bytes(b"new")
    asked = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return folder.path

    merged, opened = (read(path, resolve=resolve) for read in (load_checkpoint, open_checkpoint))
    np.testing.assert_array_equal(q_kernel(merged), q_kernel(load_checkpoint(path, base=folder.path)))
    assert convert(path, tmp_path / "out", resolve=resolve).source_kind == "lora"
    assert asked == ["owner/name"] * 3
    assert (opened.params, opened.config, opened.files) == ({}, merged.config, merged.files)
    assert (opened.source, opened.stored_dtype) == (merged.source, "float32")
    assert "merged when the weights are read" in opened.notes[-1]


def test_tied_table(tmp_path, make_folder):
    base = make_folder(presets.tiny(tie_embeddings=True))
    path = adapter(tmp_path / "lora", {"model.text_model.embed_tokens.weight": np.ones((320, 32))})
    with pytest.raises(SmoljaxError, match="ties to its head"):
        load_checkpoint(path, base=base.path)


def test_text_only_names(tmp_path, make_folder):
    base = make_folder(tiny_text())
    path = adapter(tmp_path / "lora", pair("model.layers.1.self_attn.q_proj"))
    merged = load_checkpoint(path, base=base.path)
    assert not np.array_equal(q_kernel(merged), q_kernel(load_hf(base.path)))
