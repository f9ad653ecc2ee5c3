"""The one table between PyTorch tensor names and our parameter paths, used in both directions.

A rule's shape is written in letters. Read with a config, the letters are numbers and the table says what a
checkpoint must hold; read with a checkpoint, the tensors bind the letters and the table says what the config
must be (`bind_sizes`), which is how keys that some releases leave out are inferred.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.convert.checkpoint import iterate_leaves
from smoljax.errors import SmoljaxError

Layout = Literal["none", "transpose", "patch"]


@dataclass(frozen=True)
class Rule:
    """One row: PyTorch name, our path, PyTorch shape in letters, and how the array is laid out.

    `{i}` counts layers. Layouts: "none" as it is; "transpose" [out, in] ↔ [in, out]; "patch" the kernel of
    the patch convolution [E, C, p, p] ↔ [C·p·p, E].
    """

    torch: str
    ours: str
    shape: str
    layout: Layout = "none"

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the shape, one an axis."""
        return tuple(self.shape.split())


# Letters. Vision: E width, F feed-forward, C channels, p patch side, P patches, Lv layers.
# Connector: S = E·scale_factor². Text: V words, D width, G feed-forward, N query rows (heads · head width),
# K key-value rows, Lt layers.
_V = "model.vision_model."
_VL = _V + "encoder.layers.{i}."
VISION_RULES: tuple[Rule, ...] = (
    Rule(_V + "embeddings.patch_embedding.weight", "vision/patch_embedding/kernel", "E C p p", "patch"),
    Rule(_V + "embeddings.patch_embedding.bias", "vision/patch_embedding/bias", "E"),
    Rule(_V + "embeddings.position_embedding.weight", "vision/position_embedding", "P E"),
    Rule(_VL + "layer_norm1.weight", "vision/layers_{i}/norm1/scale", "E"),
    Rule(_VL + "layer_norm1.bias", "vision/layers_{i}/norm1/bias", "E"),
    Rule(_VL + "self_attn.q_proj.weight", "vision/layers_{i}/attention/q/kernel", "E E", "transpose"),
    Rule(_VL + "self_attn.q_proj.bias", "vision/layers_{i}/attention/q/bias", "E"),
    Rule(_VL + "self_attn.k_proj.weight", "vision/layers_{i}/attention/k/kernel", "E E", "transpose"),
    Rule(_VL + "self_attn.k_proj.bias", "vision/layers_{i}/attention/k/bias", "E"),
    Rule(_VL + "self_attn.v_proj.weight", "vision/layers_{i}/attention/v/kernel", "E E", "transpose"),
    Rule(_VL + "self_attn.v_proj.bias", "vision/layers_{i}/attention/v/bias", "E"),
    Rule(_VL + "self_attn.out_proj.weight", "vision/layers_{i}/attention/out/kernel", "E E", "transpose"),
    Rule(_VL + "self_attn.out_proj.bias", "vision/layers_{i}/attention/out/bias", "E"),
    Rule(_VL + "layer_norm2.weight", "vision/layers_{i}/norm2/scale", "E"),
    Rule(_VL + "layer_norm2.bias", "vision/layers_{i}/norm2/bias", "E"),
    Rule(_VL + "mlp.fc1.weight", "vision/layers_{i}/mlp/fc1/kernel", "F E", "transpose"),
    Rule(_VL + "mlp.fc1.bias", "vision/layers_{i}/mlp/fc1/bias", "F"),
    Rule(_VL + "mlp.fc2.weight", "vision/layers_{i}/mlp/fc2/kernel", "E F", "transpose"),
    Rule(_VL + "mlp.fc2.bias", "vision/layers_{i}/mlp/fc2/bias", "E"),
    Rule(_V + "post_layernorm.weight", "vision/final_norm/scale", "E"),
    Rule(_V + "post_layernorm.bias", "vision/final_norm/bias", "E"),
    Rule("model.connector.modality_projection.proj.weight", "connector/proj/kernel", "D S", "transpose"),
)

_T = "model.text_model."
_TL = _T + "layers.{i}."
TEXT_RULES: tuple[Rule, ...] = (
    Rule(_T + "embed_tokens.weight", "embedding/table", "V D"),
    Rule(_TL + "input_layernorm.weight", "decoder/layers_{i}/norm1/scale", "D"),
    Rule(_TL + "self_attn.q_proj.weight", "decoder/layers_{i}/attention/q/kernel", "N D", "transpose"),
    Rule(_TL + "self_attn.k_proj.weight", "decoder/layers_{i}/attention/k/kernel", "K D", "transpose"),
    Rule(_TL + "self_attn.v_proj.weight", "decoder/layers_{i}/attention/v/kernel", "K D", "transpose"),
    Rule(_TL + "self_attn.o_proj.weight", "decoder/layers_{i}/attention/out/kernel", "D N", "transpose"),
    Rule(_TL + "post_attention_layernorm.weight", "decoder/layers_{i}/norm2/scale", "D"),
    Rule(_TL + "mlp.gate_proj.weight", "decoder/layers_{i}/mlp/gate/kernel", "G D", "transpose"),
    Rule(_TL + "mlp.up_proj.weight", "decoder/layers_{i}/mlp/up/kernel", "G D", "transpose"),
    Rule(_TL + "mlp.down_proj.weight", "decoder/layers_{i}/mlp/down/kernel", "D G", "transpose"),
    Rule(_T + "norm.weight", "decoder/final_norm/scale", "D"),
)
HEAD_RULE = Rule("lm_head.weight", "embedding/head", "V D")

EMBED_NAME = "model.text_model.embed_tokens.weight"
HEAD_NAME = "lm_head.weight"


@dataclass(frozen=True)
class Entry:
    """One tensor of one model: `Rule` with the layer filled in and the shape in numbers.

    `torch` is the canonical name, the same for a whole SmolVLM and for a text-only Llama;
    `file_name(torch, text_only)` is what stands in a file.
    """

    torch: str
    ours: str
    shape: tuple[int, ...]
    layout: Layout

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape of the array under our path."""
        if self.layout == "transpose":
            return self.shape[::-1]
        if self.layout == "patch":
            out, *rest = self.shape
            return (int(np.prod(rest)), out)
        return self.shape


def rules(*, text_only: bool, tied: bool) -> tuple[Rule, ...]:
    """The rows of the table that a model of this kind has."""
    return (() if text_only else VISION_RULES) + TEXT_RULES + (() if tied else (HEAD_RULE,))


def sizes_of(config: SmolVLMConfig) -> dict[str, int]:
    """The letters of the table as numbers."""
    text = config.text
    sizes = {
        "V": text.vocab_size,
        "D": text.hidden_size,
        "G": text.intermediate_size,
        "N": text.num_heads * text.head_dim,
        "K": text.num_kv_heads * text.head_dim,
        "Lt": text.num_layers,
    }
    if (vision := config.vision) is not None and config.scale_factor is not None:
        sizes |= {
            "E": vision.hidden_size,
            "F": vision.intermediate_size,
            "C": vision.num_channels,
            "p": vision.patch_size,
            "P": vision.num_patches,
            "Lv": vision.num_layers,
            "S": vision.hidden_size * config.scale_factor**2,
        }
    return sizes


def check_released(config: SmolVLMConfig) -> None:
    """SmoljaxError for a model that PyTorch's classes cannot hold."""
    if not config.sharing.released:
        sharing = config.sharing
        raise SmoljaxError(
            "its image tokens and words share their space in another way than the released models' (connector "
            f"{sharing.connector!r}, image attention {sharing.image_attention!r}): transformers has no class for "
            "that; the native format holds it"
        )


def stored_entries(config: SmolVLMConfig) -> list[Entry]:
    """Every array of a native folder: those of `expand`, or without PyTorch names where the model has none."""
    if config.sharing.released:
        return expand(config)
    from smoljax.nn.smolvlm import abstract_params

    leaves = iterate_leaves(abstract_params(config.with_compute(scan_layers=False)))
    return [Entry("", path, tuple(leaf.shape), "none") for path, leaf in leaves]


def expand(config: SmolVLMConfig) -> list[Entry]:
    """Every tensor of a model, layers in order: 471 for 256M, 489 for 500M, 657 for 2.2B.

    Raises:
      SmoljaxError: it shares its embedding space otherwise than PyTorch's classes can.
    """
    check_released(config)
    sizes = sizes_of(config)
    head_less = rules(text_only=config.vision is None, tied=config.tie_embeddings)
    entries: list[Entry] = []
    for block in _blocks(head_less):
        layered = "{i}" in block[0].torch
        count = sizes["Lv" if "vision" in block[0].torch else "Lt"] if layered else 1
        for i in range(count):
            for rule in block:
                shape = tuple(sizes[letter] for letter in rule.letters)
                entries.append(Entry(rule.torch.format(i=i), rule.ours.format(i=i), shape, rule.layout))
    return entries


def _blocks(table: Iterable[Rule]) -> list[list[Rule]]:
    """Runs of neighbouring rules that are all layered, or all not."""
    blocks: list[list[Rule]] = []
    for rule in table:
        if blocks and ("{i}" in rule.torch) == ("{i}" in blocks[-1][0].torch):
            blocks[-1].append(rule)
        else:
            blocks.append([rule])
    return blocks


def bind_sizes(shapes: Mapping[str, tuple[int, ...]], *, text_only: bool) -> dict[str, tuple[int, str]]:
    """Letter → (number, "name [shape]" it was read from), from the canonical names of a checkpoint.

    The first tensor that shows a letter binds it; later disagreement is left to the strict comparison.
    Lt and Lv are one more than the highest layer index seen.
    """
    found: dict[str, tuple[int, str]] = {}
    for rule in rules(text_only=text_only, tied=False):
        name = rule.torch.format(i=0)
        shape = shapes.get(name)
        if shape is None or len(shape) != len(rule.letters):
            continue
        for letter, number in zip(rule.letters, shape, strict=True):
            found.setdefault(letter, (number, f"{name} {list(shape)}"))
    if "V" not in found and HEAD_NAME in shapes and len(shapes[HEAD_NAME]) == 2:
        found["V"] = (shapes[HEAD_NAME][0], f"{HEAD_NAME} {list(shapes[HEAD_NAME])}")
    for letter, prefix in (("Lt", _TL), ("Lv", _VL)):
        pattern = re.compile(re.escape(prefix.format(i="@")).replace("@", r"(\d+)"))
        indices = {int(match.group(1)) for name in shapes if (match := pattern.match(name))}
        if indices:
            found[letter] = (max(indices) + 1, f"{prefix.format(i=max(indices))}*")
    return found


def to_ours(array: np.ndarray, entry: Entry) -> np.ndarray:
    """PyTorch layout → ours; a view where the layout allows (always, from a contiguous array)."""
    if entry.layout == "transpose":
        return array.T
    if entry.layout == "patch":
        return array.reshape(array.shape[0], -1).T
    return array


def to_torch(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Our layout → PyTorch, the inverse of `to_ours`."""
    if entry.layout == "transpose":
        return array.T
    if entry.layout == "patch":
        return array.T.reshape(entry.shape)
    return array


# Names that are no weights in any release: buffers that older code saved along.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|embeddings\.position_ids)$")

_VLM_ALIASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # `vision_model.`, mlx `vision_tower.vision_model.`
        (r"^(model\.)?(vision_tower\.vision_model|vision_tower|vision_model)\.", "model.vision_model."),
        (r"^(model\.)?connector\.", "model.connector."),
        # `text_model.`, `model.text_model.model.`, mlx `language_model.` and `language_model.model.`
        (
            r"^(model\.)?(text_model|language_model)\.(model\.)?(?=(embed_tokens|layers|norm)\.)",
            "model.text_model.",
        ),
        (r"^(model\.)?((text_model|language_model)\.)?lm_head\.", "lm_head."),
    )
)
_TEXT_ALIASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (
            r"^(model\.)?((text_model|language_model)\.)?(model\.)?(?=(embed_tokens|layers|norm)\.)",
            "model.text_model.",
        ),
        (r"^(model\.)?((text_model|language_model)\.)?lm_head\.", "lm_head."),
    )
)


def is_buffer(name: str) -> bool:
    """Whether a stored name is no weight (RoPE frequencies, position ids) and is skipped."""
    return _BUFFERS.search(name) is not None


def canonical(name: str, *, text_only: bool) -> str:
    """The canonical name of a stored one; a name no alias knows comes back as it is.

    Bare `model.layers.…` is a Llama of its own: canonical for a text-only model, left alone (and so
    reported as left over) beside a vision part.
    """
    for pattern, replacement in _TEXT_ALIASES if text_only else _VLM_ALIASES:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return name


def file_name(torch_name: str, *, text_only: bool) -> str:
    """The name in a reference checkpoint: LlamaForCausalLM has no `text_model.` part."""
    return torch_name.replace("model.text_model.", "model.", 1) if text_only else torch_name


def difference(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    duplicates: Iterable[str] = (),
) -> list[str]:
    """The whole difference in both directions, one line a name; empty when there is none."""
    lines = [f"missing     {name} {list(wanted[name])}" for name in wanted if name not in found]
    lines += [f"left over   {name} {list(found[name])}" for name in found if name not in wanted]
    lines += [
        f"mis-shaped  {name} is {list(found[name])}, must be {list(wanted[name])}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    lines += [f"duplicate   {line}" for line in duplicates]
    return lines


def check_same(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    where: str,
    duplicates: Iterable[str] = (),
) -> None:
    """Raises SmoljaxError that lists every missing, left-over, mis-shaped and duplicate name in full."""
    if lines := difference(wanted, found, duplicates):
        listing = "; ".join(" ".join(line.split()) for line in lines)
        raise SmoljaxError(f"{where}: {len(lines)} tensor name(s) do not fit the config: {listing}")
