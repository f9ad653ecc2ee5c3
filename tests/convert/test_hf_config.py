"""config.json: keys that are left out, keys that disagree, features that are refused."""

import dataclasses

import pytest
from convert_helpers import tiny_text

from smoljax import presets
from smoljax.config import ComputeConfig
from smoljax.convert import names
from smoljax.convert.hf_config import from_hf_config, to_hf_config
from smoljax.errors import SmoljaxError

SHAPES = {entry.torch: entry.shape for entry in names.expand(presets.tiny())}
LARGE = {entry.torch: entry.shape for entry in names.expand(presets.smolvlm2_2_2b())}


def tiny(**changes):
    """The tiny model's config.json; "text_config.x" reaches inside, None removes a key."""
    data = to_hf_config(presets.tiny())
    for path, value in changes.items():
        *sections, key = path.split("__")
        holder = data
        for section in sections:
            holder = holder[section]
        if value is None:
            holder.pop(key, None)
        else:
            holder[key] = value
    return data


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_inverse(name):
    config = presets.get(name)
    parsed = from_hf_config(to_hf_config(config), {e.torch: e.shape for e in names.expand(config)})
    assert parsed.config == config
    assert parsed.notes == ()
    assert parsed.amended is None


INFERRED = [
    "text_config__hidden_size",
    "text_config__intermediate_size",
    "text_config__num_hidden_layers",
    "text_config__vocab_size",
    "text_config__num_key_value_heads",
    "text_config__head_dim",
    "text_config__num_attention_heads",
    "vision_config__hidden_size",
    "vision_config__intermediate_size",
    "vision_config__num_hidden_layers",
    "vision_config__image_size",
    "vision_config__patch_size",
    "vision_config__num_channels",
    "scale_factor",
    "tie_word_embeddings",
]


@pytest.mark.parametrize("path", INFERRED)
def test_a_missing_key_is_read_off_the_tensors(path):
    parsed = from_hf_config(tiny(**{path: None}), SHAPES)
    assert parsed.config == presets.tiny()
    if path != "text_config__head_dim":  # follows from hidden_size and the heads, as in the reference
        assert any(path.split("__")[-1] in note for note in parsed.notes)


def test_all_of_them_at_once_but_the_heads():
    gone = {path: None for path in INFERRED if path not in ("text_config__num_attention_heads",)}
    assert from_hf_config(tiny(**gone), SHAPES).config == presets.tiny()


def test_2_2b_as_released_without_heads():
    """SmolVLM2-2.2B: no num_attention_heads, key-value heads or head_dim; short vision_config."""
    data = to_hf_config(presets.smolvlm2_2_2b())
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        del data["text_config"][key]
    for key in ("num_attention_heads", "num_hidden_layers", "num_channels", "layer_norm_eps"):
        del data["vision_config"][key]
    parsed = from_hf_config(data, LARGE)
    assert parsed.config == presets.smolvlm2_2_2b()
    assert any("num_attention_heads" in note and "32" in note for note in parsed.notes)


def test_reference_defaults_are_said():
    data = tiny(
        text_config__rope_theta=None,
        text_config__rms_norm_eps=None,
        text_config__max_position_embeddings=None,
    )
    parsed = from_hf_config(data, SHAPES)
    assert parsed.config.text.rope_theta == 10_000.0
    assert parsed.config.text.rms_norm_eps == 1e-6
    assert parsed.config.text.max_positions == 2048
    assert sum("the reference's default" in note for note in parsed.notes) == 3


def test_rope_as_transformers_5_writes_it():
    data = tiny(
        text_config__rope_theta=None, text_config__rope_parameters={"rope_theta": 7.0, "rope_type": "default"}
    )
    parsed = from_hf_config(data, SHAPES)
    assert (parsed.config.text.rope_theta, parsed.notes) == (7.0, ())


JUNK = {
    "pad_token_id": 128002,
    "perceiver_config": {"hidden_act": "silu"},
    "use_resampler": False,
    "qk_layer_norms": False,
    "neftune_noise_alpha": 0.0,
    "pixel_shuffle_factor": 4,
    "_flash_attn_2_enabled": True,
    "architectures": ["VLlama3ForCausalLM"],
}


def test_junk_is_ignored():
    data = tiny() | JUNK
    data["text_config"] |= JUNK
    assert from_hf_config(data, SHAPES).config == presets.tiny()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("text_config__hidden_size", 64, ["text_config.hidden_size is 64", "says 32"]),
        (
            "text_config__intermediate_size",
            65,
            ["intermediate_size is 65", "gate_proj.weight [64, 32]"],
        ),
        ("text_config__num_hidden_layers", 4, ["text_config.num_hidden_layers is 4", "layers.2.", "says 3"]),
        ("text_config__vocab_size", 321, ["text_config.vocab_size is 321", "[320, 32]"]),
        ("text_config__num_attention_heads", 8, ["num_attention_heads is 8", "q_proj.weight [32, 32]"]),
        ("text_config__num_key_value_heads", 4, ["num_key_value_heads is 4", "k_proj.weight [16, 32]"]),
        ("text_config__head_dim", 16, ["head_dim 16", "q_proj.weight"]),
        ("vision_config__hidden_size", 12, ["vision_config.hidden_size is 12", "[24, 3, 8, 8]"]),
        ("vision_config__patch_size", 16, ["vision_config.patch_size is 16", "[24, 3, 8, 8]"]),
        ("vision_config__image_size", 64, ["vision_config.image_size is 64", "[16, 24]"]),
        ("vision_config__image_size", [32, 64], ["only squares"]),
        ("scale_factor", 4, ["scale_factor is 4", "[32, 96]"]),
        ("image_token_id", 128257, ["image_token_id is 128257"]),
        ("image_token_id", None, ["image_token_id is None"]),
        ("model_type", "llava", ["model_type is 'llava'"]),
        ("text_config", None, ["text_config is missing"]),
        ("text_config__hidden_act", "gelu", ["text_config.hidden_act is 'gelu'", "silu"]),
        ("text_config__attention_bias", True, ["attention_bias is True"]),
        ("text_config__rope_scaling", {"rope_type": "llama3"}, ["rope_scaling", "'llama3'", "not supported"]),
        ("text_config__rope_parameters", {"rope_type": "yarn"}, ["rope_parameters", "'yarn'"]),
        ("text_config__hidden_size", "wide", ["text_config.hidden_size is 'wide'", "whole number"]),
        ("text_config__hidden_size", True, ["text_config.hidden_size is True"]),
        ("text_config__num_attention_heads", 0, ["text_config.num_attention_heads is 0"]),
        ("text_config__head_dim", 0, ["text_config.head_dim is 0"]),
        ("text_config__num_key_value_heads", 1.5, ["text_config.num_key_value_heads is 1.5"]),
        ("text_config__rms_norm_eps", float("nan"), ["text_config.rms_norm_eps is nan"]),
        ("text_config__rms_norm_eps", "1e-5", ["text_config.rms_norm_eps is '1e-5'"]),
        ("text_config__rope_theta", float("inf"), ["text_config.rope_theta is inf"]),
        ("text_config__rope_theta", -1, ["text_config.rope_theta is -1"]),
        ("text_config__rope_scaling", "x", ["text_config.rope_scaling is 'x'"]),
        ("text_config__rope_parameters", [1], ["text_config.rope_parameters is [1]"]),
        ("text_config__rope_scaling", {"partial_rotary_factor": "half"}, ["not of the type"]),
        ("text_config__max_position_embeddings", 0, ["text_config.max_position_embeddings is 0"]),
        ("vision_config__layer_norm_eps", -1, ["vision_config.layer_norm_eps is -1"]),
        ("vision_config__num_attention_heads", None, ["num_attention_heads is missing", "default 16", "24"]),
        ("vision_config__patch_size", [], ["only squares"]),
        ("image_token_id", 300.5, ["image_token_id is 300.5"]),
        ("image_token_id", -1, ["image_token_id is -1"]),
        ("tie_word_embeddings", "false", ["tie_word_embeddings is 'false'"]),
        ("vision_config__hidden_act", "relu", ["vision_config.hidden_act is 'relu'"]),
        ("vision_config__num_attention_heads", 5, ["24", "5 heads"]),
    ],
)
def test_refusals_name_key_value_and_shape(path, value, words):
    with pytest.raises(SmoljaxError) as error:
        from_hf_config(tiny(**{path: value}), SHAPES, "folder/config.json")
    assert str(error.value).startswith("folder/config.json: ")
    for word in words:
        assert word in str(error.value)


def test_a_whole_float_becomes_an_int():
    found = from_hf_config(tiny(image_token_id=300.0), SHAPES).config.image_token_id
    assert (found, type(found)) == (300, int)


VISION, TEXT = presets.tiny().vision, presets.tiny().text
assert VISION is not None


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (ComputeConfig(), {"dtype": "bf16"}),
        (ComputeConfig(), {"dtype": "float16"}),
        (ComputeConfig(), {"remat": "some"}),
        (VISION, {"layer_norm_eps": 0.0}),
        (VISION, {"num_heads": 0}),
        (TEXT, {"rms_norm_eps": float("nan")}),
        (TEXT, {"rope_theta": -1.0}),
        (TEXT, {"rope_theta": "x"}),
        (TEXT, {"num_layers": 2.0}),
        (presets.tiny(), {"image_token_id": 320}),
        (presets.tiny(), {"image_token_id": -1}),
        (presets.tiny(), {"image_token_id": 300.0}),
        (presets.tiny(), {"scale_factor": 0}),
    ],
)
def test_the_dataclasses_check_themselves(part, changes):
    ((key, value),) = changes.items()
    with pytest.raises(SmoljaxError) as error:
        dataclasses.replace(part, **changes)
    assert f"{key} is {value!r}" in str(error.value)


def test_image_size_that_the_patches_do_not_fill():
    data = to_hf_config(presets.smolvlm2_2_2b())
    assert from_hf_config(data, LARGE).config.vision.image_size == 384
    del data["vision_config"]["image_size"]
    assert from_hf_config(data, LARGE).config.vision.image_size == 378


def test_only_the_top_level_tying_counts():
    data = tiny(text_config__tie_word_embeddings=True)
    assert not from_hf_config(data, SHAPES).config.tie_embeddings


def test_ids_are_written():
    data = to_hf_config(tiny_text(), dtype="bfloat16", pad_token_id=2, eos_token_id=[1, 2])
    assert (data["pad_token_id"], data["eos_token_id"], data["torch_dtype"]) == (2, [1, 2], "bfloat16")
    assert "bos_token_id" not in data
    assert from_hf_config(data, {e.torch: e.shape for e in names.expand(tiny_text())}).config == tiny_text()
