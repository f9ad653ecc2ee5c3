"""HF → JAX → HF and JAX → HF → JAX, byte for byte; golden files that transformers wrote."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from convert_helpers import GOLDEN, SMALL_FILES, Folder, flat, random_checkpoint, tiny_text

from smoljax import presets
from smoljax.convert.convert import convert, kind_of, load_checkpoint
from smoljax.convert.hf import load_hf, save_hf
from smoljax.convert.native import load_native, read_metadata, save_native
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.stacking import stack_layers


@pytest.mark.parametrize("name", ["smolvlm", "idefics3_tied", "llama_tied"])
@pytest.mark.parametrize("via", ["memory", "native"])
def test_hf_to_jax_to_hf_gives_the_same_files(tmp_path, name, via):
    source = GOLDEN / name
    if via == "memory":
        save_hf(load_hf(source), tmp_path / "out")
    else:
        convert(source, tmp_path / "native")
        summary = convert(tmp_path / "native", tmp_path / "out")
        assert summary.to == "hf"
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_golden_configs():
    smolvlm, tied, llama = (load_hf(GOLDEN / n) for n in ("smolvlm", "idefics3_tied", "llama_tied"))
    assert (smolvlm.config.model_type, smolvlm.dtype, smolvlm.notes) == ("smolvlm", "float32", ())
    assert smolvlm.config.text.rope_theta == 100_000.0
    assert smolvlm.config.text.rms_norm_eps == 1e-5
    assert (tied.config.model_type, tied.dtype, tied.config.tie_embeddings) == ("idefics3", "bfloat16", True)
    assert (llama.config.vision, llama.dtype, llama.config.tie_embeddings) == (None, "float16", True)


def test_golden_layouts():
    """Our kernels compute what the reference's layers computed."""
    params = load_hf(GOLDEN / "smolvlm").params
    golden = np.load(GOLDEN / "layout.npz")
    pixels = golden["pixels"][0].reshape(3, 4, 4, 4, 4).transpose(1, 3, 0, 2, 4).reshape(16, 48)
    patch = params["vision"]["patch_embedding"]
    np.testing.assert_allclose(pixels @ patch["kernel"] + patch["bias"], golden["patches"][0], atol=1e-4)
    for key in golden.files:
        if key.startswith("in:"):
            layer = params
            for part in key[3:].split("/"):
                layer = layer[part]
            out = golden[key] @ layer["kernel"] + layer.get("bias", 0)
            np.testing.assert_allclose(out, golden["out:" + key[3:]], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "config", [presets.tiny(), presets.tiny(tie_embeddings=True), tiny_text(), tiny_text(tied=False)]
)
def test_jax_to_hf_to_jax(tmp_path, config, dtype):
    checkpoint = random_checkpoint(config, dtype)
    save_hf(checkpoint, tmp_path / "hf")
    loaded = load_hf(tmp_path / "hf")
    assert flat(loaded.params) == flat(checkpoint.params)
    assert loaded.config == config
    assert {name: loaded.files[name] for name in SMALL_FILES} == SMALL_FILES
    assert json.loads(loaded.files["config.json"])["torch_dtype"] == dtype


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_native_round_trip(tmp_path, dtype, scan_layers):
    checkpoint = dataclasses.replace(random_checkpoint(dtype=dtype), notes=("a note",))
    save_native(checkpoint, tmp_path / "n", scan_layers=scan_layers)
    loaded = load_native(tmp_path / "n")
    assert flat(loaded.params) == flat(checkpoint.params)
    assert (loaded.config, loaded.files, loaded.notes) == (checkpoint.config, SMALL_FILES, ("a note",))
    metadata = read_metadata(tmp_path / "n")
    assert metadata["layout"] == {"scan_layers": scan_layers}
    assert (metadata["tensors"], metadata["parameters"]) == (68, checkpoint.num_parameters)
    assert metadata["dtype"] == dtype


def test_stacked_jax_arrays_are_written_as_well(tmp_path, checkpoint):
    stacked = dataclasses.replace(
        checkpoint, params=jax.tree.map(jax.numpy.asarray, stack_layers(checkpoint.params))
    )
    save_hf(stacked, tmp_path / "hf")
    save_native(stacked, tmp_path / "n")
    assert flat(load_hf(tmp_path / "hf").params) == flat(checkpoint.params)
    assert flat(load_native(tmp_path / "n").params) == flat(checkpoint.params)


def test_shards(tmp_path, checkpoint):
    save_hf(checkpoint, tmp_path / "hf", max_shard_bytes=50_000)
    shards = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert flat(load_hf(tmp_path / "hf").params) == flat(checkpoint.params)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == checkpoint.num_bytes


def test_dtype_casts_and_restates(tmp_path, folder: Folder):
    summary = convert(folder.path, tmp_path / "bf16", to="hf", dtype="bfloat16")
    assert (summary.dtype, summary.bytes) == ("bfloat16", 2 * summary.parameters)
    data = json.loads((tmp_path / "bf16" / "config.json").read_bytes())
    assert data["torch_dtype"] == data["text_config"]["torch_dtype"] == "bfloat16"
    before, after = load_hf(folder.path), load_hf(tmp_path / "bf16")
    kernel = before.params["connector"]["proj"]["kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(after.params["connector"]["proj"]["kernel"], kernel)
    assert load_hf(tmp_path / "bf16", "float32").dtype == "float32"
    convert(folder.path, tmp_path / "native", dtype="bfloat16")
    assert flat(load_native(tmp_path / "native").params) == flat(after.params)
    assert load_native(tmp_path / "native", "float32").dtype == "float32"


def test_a_changed_network_gets_a_new_config(tmp_path, folder: Folder):
    loaded = load_hf(folder.path)
    wider = random_checkpoint(presets.tiny(vocab_size=384))
    save_hf(dataclasses.replace(loaded, config=wider.config, params=wider.params), tmp_path / "out")
    assert load_hf(tmp_path / "out").config.text.vocab_size == 384


def test_kinds(tmp_path, folder: Folder):
    convert(folder.path, tmp_path / "n")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert [kind_of(tmp_path / n) for n in ("hf", "n", "lora", "x.gguf")] == ["hf", "native", "lora", "gguf"]
    assert flat(load_checkpoint(tmp_path / "n").params) == flat(load_checkpoint(folder.path).params)
    for path in (tmp_path, tmp_path / "none", folder.config):
        with pytest.raises(SmoljaxError, match=str(path)):
            kind_of(path)
    with pytest.raises(UsageError):
        convert(folder.path, tmp_path / "y", dtype="int8")
    with pytest.raises(UsageError):
        convert(folder.path, tmp_path / "y", to="onnx")  # pyright: ignore[reportArgumentType]
