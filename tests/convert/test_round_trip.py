"""HF → JAX → HF and JAX → HF → JAX, byte for byte; golden files that transformers wrote."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from convert_helpers import GOLDEN, SMALL_FILES, Folder, flat, random_checkpoint, tiny_text

from smoljax import presets
from smoljax.cli.describe import describe
from smoljax.config import ComputeConfig
from smoljax.convert import safetensors_file
from smoljax.convert.convert import convert, kind_of, load_checkpoint, open_checkpoint
from smoljax.convert.hf import load_hf, save_hf
from smoljax.convert.native import load_native, read_metadata, save_native
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.smolvlm import SmolVLM
from smoljax.nn.stacking import stack_layers
from smoljax.processing.config import PROCESSOR_FILES


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
    assert metadata["layout"] == {"scan_layers": scan_layers, "packed": scan_layers}
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


def test_how_it_was_executed_is_not_stored(tmp_path, checkpoint):
    """Params load unstacked, so the config must not say otherwise; a folder that does is read as well."""
    elsewhere = checkpoint.config.with_compute(scan_layers=True, dtype="bfloat16")
    stacked = stack_layers(checkpoint.params)
    save_native(dataclasses.replace(checkpoint, config=elsewhere, params=stacked), tmp_path / "n")
    loaded = load_native(tmp_path / "n")
    assert loaded.config == checkpoint.config
    assert loaded.config.compute == ComputeConfig()
    batch = {"input_ids": np.arange(5)[None]}
    params = jax.tree.map(jax.numpy.asarray, loaded.params)
    out = SmolVLM(loaded.config).apply({"params": params}, batch)
    assert np.isfinite(out.logits).all()
    path = tmp_path / "n" / "smoljax.json"
    data = json.loads(path.read_bytes())
    assert "compute" not in data["config"]
    data["config"]["compute"] = {"scan_layers": True, "dtype": "bfloat16", "remat": "none"}
    path.write_text(json.dumps(data))
    assert load_native(tmp_path / "n").config == checkpoint.config


def test_untrained_survives_every_format(tmp_path, checkpoint):
    random = dataclasses.replace(checkpoint, untrained=True)
    save_native(random, tmp_path / "n")
    convert(tmp_path / "n", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "n2")
    convert(tmp_path / "n2", tmp_path / "hf2")
    for name in ("n", "hf", "n2", "hf2"):
        assert load_checkpoint(tmp_path / name, "bfloat16").untrained, name
        assert open_checkpoint(tmp_path / name).untrained, name
        assert describe(str(tmp_path / name))["untrained"], name
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "hf2" / file.name).read_bytes() == file.read_bytes(), file.name
    trained = dataclasses.replace(load_checkpoint(tmp_path / "hf"), untrained=False)
    save_hf(trained, tmp_path / "trained")
    assert b"smoljax_untrained" not in (tmp_path / "trained" / "config.json").read_bytes()
    assert not load_hf(tmp_path / "trained").untrained
    metadata = read_metadata(tmp_path / "n")
    del metadata["untrained"]  # as older folders are
    (tmp_path / "n" / "smoljax.json").write_text(json.dumps(metadata))
    assert not load_native(tmp_path / "n").untrained


@pytest.mark.parametrize("name", ["smolvlm", "idefics3_tied", "llama_tied"])
def test_opened_without_reading_weights(tmp_path, monkeypatch, name):
    loaded = load_hf(GOLDEN / name)
    convert(GOLDEN / name, tmp_path / "native")

    def read(*_):
        pytest.fail("a weight was read")

    monkeypatch.setattr(
        "smoljax.convert.safetensors_file._lazy",
        lambda path, name, handle, lazy=safetensors_file._lazy: dataclasses.replace(
            lazy(path, name, handle), read=read
        ),
    )
    for weights in (tmp_path / "native" / "params").rglob("*"):
        if weights.is_file() and weights.name != "zarr.json":
            weights.unlink()
    for source in (GOLDEN / name, tmp_path / "native"):
        opened = open_checkpoint(source)
        assert (opened.params, opened.config, opened.files) == ({}, loaded.config, loaded.files)
        assert (opened.notes, opened.stored_dtype) == (loaded.notes, loaded.dtype)
        report = describe(str(source))
        assert (report["tensors"], report["parameters"]) == (loaded.num_tensors, loaded.num_parameters)
        assert report["stored_dtype"] == loaded.dtype
    with pytest.raises(pytest.fail.Exception, match="a weight was read"):
        load_hf(GOLDEN / name)


def test_a_tied_table_stored_twice_is_said(tmp_path, make_folder):
    folder = make_folder(presets.tiny(tie_embeddings=True))
    tensors = folder.tensors()
    assert load_hf(folder.path).notes == ()
    folder.write(tensors | {"lm_head.weight": tensors["model.text_model.embed_tokens.weight"].copy()})
    summary = convert(folder.path, tmp_path / "out", to="hf")
    assert summary.tensors == len(tensors) == 67
    assert any("stored twice" in note and "lm_head" in note for note in summary.notes)
    folder.write(tensors | {"lm_head.weight": tensors["model.text_model.embed_tokens.weight"] + 1})
    assert any("differ" in note for note in load_hf(folder.path).notes)


def test_every_processor_file_travels(tmp_path, folder: Folder):
    for name in PROCESSOR_FILES:
        (folder.path / name).write_bytes(name.encode())
    convert(folder.path, tmp_path / "n")
    convert(tmp_path / "n", tmp_path / "out")
    for name in PROCESSOR_FILES:
        assert (tmp_path / "out" / name).read_bytes() == name.encode()


def test_prompts_that_transformers_would_write_otherwise_are_not_exported(tmp_path, folder: Folder):
    convert(folder.path, tmp_path / "n")
    checkpoint = load_native(tmp_path / "n")
    checkpoint.files["processor_config.json"] = b'{"image_seq_len": 4, "tile_tokens": "string"}'
    with pytest.raises(SmoljaxError, match="tile_tokens"):
        save_hf(checkpoint, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
