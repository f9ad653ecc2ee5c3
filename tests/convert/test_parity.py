"""Against torch, transformers and peft: names, buffers, pickles, what from_pretrained makes of our files."""

import json
from pathlib import Path

import numpy as np
import pytest
from convert_helpers import Folder, flat, random_checkpoint, tiny_text

from smoljax import presets
from smoljax.convert import names
from smoljax.convert.convert import convert, load_checkpoint
from smoljax.convert.hf import load_hf, save_hf
from smoljax.convert.hf_config import to_hf_config
from smoljax.errors import SmoljaxError

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def reference_model(config, **extra):
    data = to_hf_config(config, **extra)
    kinds = {
        "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
        "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config_class, model_class = kinds[config.model_type]
    return model_class(config_class(**data))


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_names_and_shapes_are_the_reference_s(name):
    config = presets.get(name)
    with torch.device("meta"):
        model = reference_model(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_embeddings:
        del theirs["lm_head.weight"]
    text_only = config.vision is None
    assert theirs == {names.file_name(e.torch, text_only=text_only): e.shape for e in names.expand(config)}


@pytest.mark.parametrize(
    "config", [presets.tiny(), presets.tiny(tie_embeddings=True), tiny_text(), tiny_text(tied=False)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_pretrained_reads_what_we_write(tmp_path, config, dtype):
    checkpoint = random_checkpoint(config, dtype)
    checkpoint.files.clear()
    save_hf(checkpoint, tmp_path / "ours", max_shard_bytes=100_000)
    auto = (
        transformers.AutoModelForCausalLM
        if config.vision is None
        else transformers.AutoModelForImageTextToText
    )
    model, info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == f"torch.{dtype}"
    text = model.config.get_text_config()
    assert text.rope_parameters["rope_theta"] == config.text.rope_theta
    assert (text.rms_norm_eps, text.head_dim) == (config.text.rms_norm_eps, config.text.head_dim)
    model.save_pretrained(tmp_path / "theirs")
    again = load_hf(tmp_path / "theirs")
    assert flat(again.params) == flat(checkpoint.params)
    assert again.config == config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle(tmp_path, make_folder, dtype, zipped):
    folder: Folder = make_folder(dtype=dtype)
    before = load_hf(folder.path)
    state = {}
    for name, array in folder.tensors().items():
        state[name] = torch.from_numpy(bits(array)).view(getattr(torch, dtype))
    folder.weights.unlink()
    path = folder.path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    after = load_hf(folder.path)
    assert flat_again(folder, before) == flat(after.params)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view({2: np.int16, 4: np.int32}[array.dtype.itemsize]).copy()


def flat_again(folder: Folder, checkpoint):
    """The map of a deleted file stays readable."""
    assert not folder.weights.exists()
    return flat(checkpoint.params)


def test_sharded_pickle(folder: Folder):
    before = flat(load_hf(folder.path).params)
    tensors = folder.tensors()
    folder.weights.unlink()
    weight_map = {}
    for i, part in enumerate((list(tensors)[:30], list(tensors)[30:])):
        torch.save({n: torch.from_numpy(tensors[n]) for n in part}, folder.path / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    (folder.path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert flat(load_hf(folder.path).params) == before


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, folder: Folder, zipped):
    marker = tmp_path / "executed"
    folder.weights.unlink()
    path = folder.path / "pytorch_model.bin"
    torch.save({"a": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SmoljaxError, match="refused") as error:
        convert(folder.path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_damaged_pickles(folder: Folder):
    folder.weights.unlink()
    path = folder.path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    data = path.read_bytes()
    for content in (b"", b"hello", data[: len(data) // 2], data[:-10]):
        path.write_bytes(content)
        with pytest.raises(SmoljaxError, match=r"pytorch_model\.bin") as error:
            load_hf(folder.path)
        assert "\n" not in str(error.value)
    torch.save({"state": {"a": torch.ones(3)}}, path)
    with pytest.raises(SmoljaxError, match="no flat table"):
        load_hf(folder.path)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 3},
        },
        {"target_modules": ["v_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["k_proj", "gate_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        {"target_modules": ["patch_embedding", "proj"]},
    ],
)
def test_lora_merge_equals_peft(tmp_path, options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = reference_model(presets.tiny())
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "lora")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours = load_checkpoint(tmp_path / "lora", base=tmp_path / "base")
    theirs = load_hf(tmp_path / "merged")
    original = load_hf(tmp_path / "base")
    moved = 0
    for entry in names.expand(ours.config):
        a, b, c = (leaf(x.params, entry.ours) for x in (ours, theirs, original))
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=entry.torch)
        moved += not np.array_equal(b, c)
    assert moved >= 2


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree
