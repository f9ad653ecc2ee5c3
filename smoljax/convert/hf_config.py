"""`config.json` of the reference ↔ `SmolVLMConfig`.

Reference classes: `SmolVLMConfig`, `Idefics3Config`, `LlamaConfig` of transformers 5.x. A key that a release
leaves out is read off the tensor shapes where they tell, and otherwise takes the reference class's default;
both are said in the notes. A key that is there and disagrees with the tensors is an error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smoljax.config import SmolVLMConfig, TextConfig, VisionConfig
from smoljax.convert.config_reader import ConfigReader
from smoljax.convert.names import EMBED_NAME, HEAD_NAME, bind_sizes, check_released
from smoljax.errors import SmoljaxError

MODEL_TYPES = ("smolvlm", "idefics3", "llama")
# Defaults of the reference classes (transformers 5.23), used only where no tensor shape tells.
TEXT_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 32,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
VISION_DEFAULTS: dict[str, Any] = {"num_attention_heads": 16, "image_size": 224, "layer_norm_eps": 1e-6}


@dataclass(frozen=True)
class ParsedConfig:
    """What a `config.json` and the tensors beside it say together.

    Attributes:
      config: the architecture.
      notes: one sentence for each value that the file did not state.
      amended: `config.json` as it must be written back for the same network, where the original would not
        describe it (merged extra rows, tying found from the tensors); None where the original does.
    """

    config: SmolVLMConfig
    notes: tuple[str, ...]
    amended: dict[str, Any] | None = None


def is_text_only(data: Mapping[str, Any], where: str = "config.json") -> bool:
    """Whether `config.json` describes a Llama by itself; raises SmoljaxError for families not read."""
    model_type = data.get("model_type")
    if model_type not in MODEL_TYPES:
        raise SmoljaxError(f"{where}: model_type is {model_type!r}; read are {', '.join(MODEL_TYPES)}")
    return model_type == "llama"


def from_hf_config(
    data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str = "config.json"
) -> ParsedConfig:
    """Builds the config from `config.json` and the tensors that lie beside it.

    Args:
      data: the parsed file.
      shapes: canonical tensor name → PyTorch shape (`smoljax.convert.names.canonical`).
      where: the file's name for messages.

    Raises:
      SmoljaxError: an unknown family, a feature that is not supported (RoPE scaling, biases, another
        activation), a key that disagrees with a tensor (key, value and shape are named), a key that is
        missing and that nothing tells, or a value of another type or out of range. All name the file.
    """
    try:
        return _parse(data, shapes, where)
    except SmoljaxError as error:
        if str(error).startswith(f"{where}: "):
            raise
        raise SmoljaxError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SmoljaxError(f"{where}: a value is not of the type it must be ({error})") from error


def _parse(data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> ParsedConfig:
    text_only = is_text_only(data, where)
    reader = ConfigReader(where, bind_sizes(shapes, text_only=text_only))
    text_data = data if text_only else _section(data, "text_config", where)
    text = _text(reader, text_data, "" if text_only else "text_config.")
    tied, tie_amended = _tied(reader, data, shapes)
    vision, scale_factor, image_token_id = None, None, None
    if not text_only:
        vision = _vision(reader, _section(data, "vision_config", where))
        scale_factor = _scale_factor(reader, data)
        image_token_id = data.get("image_token_id")
        if image_token_id is not None:
            image_token_id = reader.whole(image_token_id, "image_token_id", least=0)
        if image_token_id is None or image_token_id >= text.vocab_size:
            raise SmoljaxError(
                f"{where}: image_token_id is {image_token_id}, no id of the vocabulary of {text.vocab_size};"
                " give the id of <image> in tokenizer.json"
            )
    config = SmolVLMConfig(
        vision=vision,
        text=text,
        scale_factor=scale_factor,
        image_token_id=image_token_id,
        tie_embeddings=tied,
        model_type=data["model_type"],
    )
    stale = text_data.get("vocab_size", text.vocab_size) != text.vocab_size
    amended = amend(data, text.vocab_size, tied) if tie_amended or stale else None
    return ParsedConfig(config, tuple(reader.notes), amended)


def amend(data: Mapping[str, Any], vocab_size: int, tied: bool) -> dict[str, Any]:
    """`config.json` that states the merged vocabulary and the tying that were found."""
    changes = {"vocab_size": vocab_size, "tie_word_embeddings": tied}
    amended = {key: value for key, value in data.items() if key != "additional_vocab_size"} | changes
    if "text_config" in data:
        text = {key: value for key, value in data["text_config"].items() if key != "additional_vocab_size"}
        amended["text_config"] = text | changes
    return amended


def _section(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = data.get(key)
    if not isinstance(section, Mapping):
        raise SmoljaxError(f"{where}: {key} is missing")
    return section


def _text(reader: ConfigReader, data: Mapping[str, Any], prefix: str) -> TextConfig:
    reader.refuse(data, "model_type", ("llama", None), prefix)
    reader.refuse(data, "hidden_act", ("silu", None), prefix)
    reader.refuse(data, "attention_bias", (False, None), prefix)
    reader.refuse(data, "mlp_bias", (False, None), prefix)
    reader.refuse(data, "partial_rotary_factor", (1, 1.0, None), prefix)
    hidden = reader.sized(data, "hidden_size", "D", prefix)
    heads, kv_heads, head_dim = _heads(reader, data, hidden, prefix)
    return TextConfig(
        vocab_size=_vocab_size(reader, data, prefix),
        hidden_size=hidden,
        intermediate_size=reader.sized(data, "intermediate_size", "G", prefix),
        num_layers=reader.sized(data, "num_hidden_layers", "Lt", prefix),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=_rope_theta(reader, data, prefix),
        rms_norm_eps=_number(reader, data, "rms_norm_eps", TEXT_DEFAULTS, prefix),
        max_positions=_whole(reader, data, "max_position_embeddings", TEXT_DEFAULTS, prefix),
    )


def _vocab_size(reader: ConfigReader, data: Mapping[str, Any], prefix: str) -> int:
    """Rows of the word table; m4 releases count the decoupled extra rows apart."""
    extra = reader.whole(data.get("additional_vocab_size") or 0, "additional_vocab_size", prefix, least=0)
    rows = reader.rows("V")
    stated = data.get("vocab_size")
    if (
        extra
        and rows
        and stated is not None
        and reader.whole(stated, "vocab_size", prefix) + extra == rows[0]
    ):
        reader.notes.append(
            f"{prefix}vocab_size {stated} and additional_vocab_size {extra} are merged into {rows[0]}"
        )
        return rows[0]
    return reader.sized(data, "vocab_size", "V", prefix)


def _heads(reader: ConfigReader, data: Mapping[str, Any], hidden: int, prefix: str) -> tuple[int, int, int]:
    """(query heads, key-value heads, head width): stated, or told by the rows of q_proj and k_proj."""
    head_dim, kv_heads = (
        None if data.get(key) is None else reader.whole(data[key], key, prefix)
        for key in ("head_dim", "num_key_value_heads")
    )
    query, keys = reader.rows("N"), reader.rows("K")
    unstated = data.get("num_attention_heads") is None
    if unstated and head_dim is not None and query and query[0] % head_dim == 0:
        heads = query[0] // head_dim
        reader.notes.append(
            f"{prefix}num_attention_heads is not in {reader.where}; {heads} is read off {query[1]}"
        )
    else:
        heads = _whole(reader, data, "num_attention_heads", TEXT_DEFAULTS, prefix)
    if head_dim is None:
        head_dim = (query[0] if query else hidden) // heads
        if head_dim * heads != hidden:
            reader.notes.append(
                f"{prefix}head_dim is not in {reader.where}; {head_dim} is read off the tensors"
            )
    if query and query[0] != heads * head_dim:
        raise SmoljaxError(
            f"{reader.where}: {prefix}num_attention_heads is {heads} and head_dim {head_dim}, but {query[1]}"
            f" says {query[0]} rows"
        )
    if kv_heads is None:
        kv_heads = keys[0] // head_dim if keys else heads
        reader.notes.append(
            f"{prefix}num_key_value_heads is not in {reader.where}; {kv_heads} is"
            + (f" read off {keys[1]}" if keys else " the reference's default")
        )
    if keys and keys[0] != kv_heads * head_dim:
        raise SmoljaxError(
            f"{reader.where}: {prefix}num_key_value_heads is {kv_heads} (head_dim {head_dim}), but {keys[1]}"
            f" says {keys[0]} rows"
        )
    return heads, kv_heads, head_dim


def _rope_theta(reader: ConfigReader, data: Mapping[str, Any], prefix: str) -> float:
    """The RoPE base, as transformers 4 (`rope_theta`) or 5 (`rope_parameters`) writes it."""
    key = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    scaling = data.get(key) or {}
    if not isinstance(scaling, Mapping):
        raise SmoljaxError(f"{reader.where}: {prefix}{key} is {scaling!r}; it must be null or an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default" or float(scaling.get("partial_rotary_factor") or 1.0) != 1.0:
        raise SmoljaxError(f"{reader.where}: {prefix}{key} of type {kind!r} is not supported, only 'default'")
    stated = scaling if scaling.get("rope_theta") is not None else data
    return _number(reader, stated, "rope_theta", TEXT_DEFAULTS, prefix)


def _whole(
    reader: ConfigReader, data: Mapping[str, Any], key: str, defaults: Mapping[str, Any], prefix: str
) -> int:
    return reader.whole(reader.given(data, key, defaults[key], prefix), key, prefix)


def _number(
    reader: ConfigReader, data: Mapping[str, Any], key: str, defaults: Mapping[str, Any], prefix: str
) -> float:
    return reader.number(reader.given(data, key, defaults[key], prefix), key, prefix)


def _tied(
    reader: ConfigReader, data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bool, bool]:
    """(tied, whether `config.json` must say so anew); only the top-level key counts, as in the reference."""
    stated = data.get("tie_word_embeddings")
    present = {HEAD_NAME in shapes, EMBED_NAME in shapes}
    if stated is None:
        tied = present == {True, False}
        why = "only one of lm_head and embed_tokens is stored" if tied else "both, or neither, are stored"
        reader.notes.append(f"tie_word_embeddings is not in {reader.where}; {tied}, since {why}")
        return tied, tied
    if not isinstance(stated, bool):
        raise SmoljaxError(f"{reader.where}: tie_word_embeddings is {stated!r}; it must be true or false")
    return stated, False


def _vision(reader: ConfigReader, data: Mapping[str, Any]) -> VisionConfig:
    prefix = "vision_config."
    reader.refuse(data, "hidden_act", ("gelu_pytorch_tanh", None), prefix)
    patch = reader.sized({"patch_size": _square(reader, data, "patch_size")}, "patch_size", "p", prefix)
    image = _square(reader, data, "image_size")
    patches = reader.rows("P")
    if patches:
        side = math.isqrt(patches[0])
        if side * side != patches[0]:
            raise SmoljaxError(f"{reader.where}: {patches[1]} is no square grid of patches")
        if image is None:
            fits = VISION_DEFAULTS["image_size"] // patch == side
            image = VISION_DEFAULTS["image_size"] if fits else side * patch
            reader.notes.append(
                f"{prefix}image_size is not in {reader.where}; {image} is read off {patches[1]}"
            )
        elif image // patch != side:
            raise SmoljaxError(
                f"{reader.where}: {prefix}image_size is {image} (patch_size {patch}), but {patches[1]} says"
                f" {side}×{side} patches"
            )
    hidden = reader.sized(data, "hidden_size", "E", prefix)
    heads = _whole(reader, data, "num_attention_heads", VISION_DEFAULTS, prefix)
    if data.get("num_attention_heads") is None and hidden % heads:
        raise SmoljaxError(
            f"{reader.where}: {prefix}num_attention_heads is missing, no tensor tells it, and the reference's"
            f" default {heads} does not divide hidden_size {hidden}"
        )
    return VisionConfig(
        hidden_size=hidden,
        intermediate_size=reader.sized(data, "intermediate_size", "F", prefix),
        num_layers=reader.sized(data, "num_hidden_layers", "Lv", prefix),
        num_heads=heads,
        image_size=_whole(reader, {"image_size": image}, "image_size", VISION_DEFAULTS, prefix),
        patch_size=patch,
        layer_norm_eps=_number(reader, data, "layer_norm_eps", VISION_DEFAULTS, prefix),
        num_channels=reader.sized(data, "num_channels", "C", prefix),
    )


def _square(reader: ConfigReader, data: Mapping[str, Any], key: str) -> int | None:
    """A side that the reference writes as a number or as a pair of equal numbers."""
    value = data.get(key)
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise SmoljaxError(
                f"{reader.where}: vision_config.{key} is {list(value)}; only squares are supported"
            )
        value = value[0]
    return None if value is None else reader.whole(value, key, "vision_config.")


def _scale_factor(reader: ConfigReader, data: Mapping[str, Any]) -> int:
    value = data.get("scale_factor")
    rows, width = reader.rows("S"), reader.rows("E")
    if rows is None or width is None:
        return _whole(reader, data, "scale_factor", {"scale_factor": 2}, "")
    factor = math.isqrt(rows[0] // width[0])
    if factor * factor * width[0] != rows[0]:
        raise SmoljaxError(f"{reader.where}: {rows[1]} is no square multiple of the vision width {width[0]}")
    if value is None:
        reader.notes.append(f"scale_factor is not in {reader.where}; {factor} is read off {rows[1]}")
    elif reader.whole(value, "scale_factor") != factor:
        raise SmoljaxError(f"{reader.where}: scale_factor is {value}, but {rows[1]} says {factor}")
    return factor


def to_hf_config(
    config: SmolVLMConfig,
    *,
    dtype: str = "float32",
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
) -> dict[str, Any]:
    """A `config.json` from which transformers 5.x (and 4.5x) builds the same network.

    Args:
      config: the architecture.
      dtype: what the weights beside it are stored as.
      pad_token_id: written where given, as are the two below.
      bos_token_id: see above.
      eos_token_id: see above.

    Raises:
      SmoljaxError: it shares its embedding space otherwise than the released models.
    """
    check_released(config)
    text = _text_to_hf(config.text)
    ids = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    text |= {key: value for key, value in ids.items() if value is not None}
    if config.vision is None:
        return {
            "architectures": ["LlamaForCausalLM"],
            **text,
            "tie_word_embeddings": config.tie_embeddings,
            "torch_dtype": dtype,
        }
    vision = config.vision
    family = "SmolVLM" if config.model_type == "smolvlm" else "Idefics3"
    return {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": config.model_type,
        "image_token_id": config.image_token_id,
        "scale_factor": config.scale_factor,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        **{key: value for key, value in ids.items() if value is not None},
        "text_config": {**text, "tie_word_embeddings": config.tie_embeddings, "torch_dtype": dtype},
        "vision_config": {
            "model_type": f"{config.model_type}_vision",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": vision.num_channels,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": vision.layer_norm_eps,
        },
    }


def _text_to_hf(text: TextConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
    }
