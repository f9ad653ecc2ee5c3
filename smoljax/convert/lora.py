"""PEFT LoRA folders (`adapter_config.json`, `adapter_model.safetensors` or `.bin`), merged onto their base.

Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rank-stabilised scaling), Liu et al. 2024 (DoRA). Reference:
`peft`'s `merge_and_unload`. Products and sums are float32 and rounded once to the base's dtype.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.hf import read_small_files
from smoljax.convert.safetensors_file import LazyTensor
from smoljax.convert.tensor_files import all_finite, cast, find_weights, open_weights, read_json
from smoljax.errors import SmoljaxError

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Keys that change what an adapter means, with the values under which it is plain LoRA or DoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "megatron_config": (None,),
}
# Initialisations that also change the base, so that the adapter does not fit the base as released.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$"
)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What of `adapter_config.json` the merge needs."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    dora: bool

    def scaling(self, module: str, rank: int, where: str) -> float:
        """The factor before B·A of one module; `rank` is what its tensors have."""
        stated = int(self.rank_pattern.get(_pattern_for(self.rank_pattern, module), self.rank))
        if stated != rank:
            raise SmoljaxError(f"{where}: {module} has rank {rank}, but the config says {stated}")
        alpha = float(self.alpha_pattern.get(_pattern_for(self.alpha_pattern, module), self.alpha))
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _pattern_for(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches a module's name or the end of it, as peft matches."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def base_of(folder: str | Path, *, resolve: Callable[[str], Path] | None = None) -> Path:
    """The model on this machine that an adapter names as its base.

    Args:
      folder: the PEFT folder.
      resolve: finds a model by a name that is no local folder (a hub id), or raises SmoljaxError.

    Raises:
      SmoljaxError: it names none, or one that is not on this machine.
    """
    folder = Path(folder)
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    hint = f"name the base model: smoljax convert {folder} OUT --base MODEL"
    if not isinstance(name, str) or not name:
        raise SmoljaxError(f"{folder}: {ADAPTER_CONFIG} names no base (base_model_name_or_path); {hint}")
    for candidate in (Path(name), folder / name):
        if candidate.is_dir():
            return candidate
    try:
        if resolve is not None:
            return resolve(name)
    except SmoljaxError as error:
        raise SmoljaxError(f"{folder}: its base {name!r} is not on this machine; {hint}") from error
    raise SmoljaxError(f"{folder}: its base {name!r} is no folder here; {hint}")


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads and checks `adapter_config.json`.

    Raises:
      SmoljaxError: another method than LoRA, or an option that is not merged here (it is named).
    """
    where = folder / ADAPTER_CONFIG
    data = read_json(where)
    if data.get("peft_type") != "LORA":
        raise SmoljaxError(f"{where}: peft_type is {data.get('peft_type')!r}; only LORA is merged")
    for key, plain in _PLAIN.items():
        if data.get(key) not in plain:
            raise SmoljaxError(f"{where}: {key} is {data[key]!r}, which is not supported; merge it with peft")
    start = str(data.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise SmoljaxError(
            f"{where}: init_lora_weights is {start!r}, which changes the base too; merge it with peft"
        )
    try:
        return AdapterConfig(
            rank=int(data["r"]),
            alpha=float(data["lora_alpha"]),
            rank_pattern=dict(data.get("rank_pattern") or {}),
            alpha_pattern=dict(data.get("alpha_pattern") or {}),
            rank_stabilised=bool(data.get("use_rslora")),
            dora=bool(data.get("use_dora")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SmoljaxError(f"{where}: r or lora_alpha is missing or no number ({error})") from error


def open_lora(base: Checkpoint, folder: str | Path) -> Checkpoint:
    """`merge_lora` without weights: an opened base with the adapter's own small files.

    Raises:
      SmoljaxError: as `read_adapter_config`.
    """
    folder = Path(folder)
    read_adapter_config(folder)
    note = f"LoRA of {folder}, merged when the weights are read"
    return _on_base(base, folder, note)


def merge_lora(base: Checkpoint, folder: str | Path) -> Checkpoint:
    """The base with an adapter merged into its weights.

    Args:
      base: the model the adapter was trained on; its dtype is kept.
      folder: the PEFT folder. Its tokenizer and processor files, where it has any, replace the base's.

    Raises:
      SmoljaxError: an unsupported option, a damaged file, tensors that fit no module of the base (all are
        listed), a tied word table that is adapted, merged weights that are not finite.
    """
    folder = Path(folder)
    where = str(folder)
    config = read_adapter_config(folder)
    text_only = base.config.vision is None
    modules, replacements = _sorted_parts(open_weights(find_weights(folder, _ADAPTER_WEIGHTS)), text_only)
    entries = {entry.torch: entry for entry in names.expand(base.config)}
    if strange := sorted({*modules, *replacements} - set(entries)):
        raise SmoljaxError(f"{where}: the base has no {', '.join(strange)}")
    if base.config.tie_embeddings and names.EMBED_NAME in {*modules, *replacements}:
        raise SmoljaxError(
            f"{where}: adapts the word table, which the base ties to its head; merge it with peft"
        )
    leaves = dict(iterate_leaves(base.params))
    bad: list[str] = []
    for name in {**replacements, **modules}:
        entry = entries[name]
        before = np.asarray(leaves[entry.ours])
        weight = names.to_torch(before, entry)
        if name in replacements:
            weight = _read_like(replacements[name], entry.shape, name, where)
        if name in modules:
            weight = _merged(weight, modules[name], config, where)
        weight = cast(weight, str(before.dtype))
        if not all_finite(weight):
            bad.append(name)
        leaves[entry.ours] = names.to_ours(weight, entry)
    if bad:
        raise SmoljaxError(f"{where}: NaN or infinite values after merging in {', '.join(bad)}")
    params: dict[str, Any] = {}
    for path, leaf in leaves.items():
        set_leaf(params, path, leaf)
    note = f"LoRA of {where} merged into {len(modules)} tensor(s), {len(replacements)} replaced"
    return _on_base(dataclasses.replace(base, params=params), folder, note)


def _on_base(base: Checkpoint, folder: Path, note: str) -> Checkpoint:
    own = read_small_files(folder)
    own = {name: own[name] for name in own if name not in ("config.json", "generation_config.json")}
    return dataclasses.replace(
        base, files=base.files | own, notes=(*base.notes, note), source=f"{base.source} + {folder}"
    )


@dataclasses.dataclass(frozen=True)
class _Module:
    """The adapter tensors of one module: `name` as the file has it, `parts` by peft's own words."""

    name: str
    parts: dict[str, LazyTensor]


def _sorted_parts(
    stored: Mapping[str, LazyTensor], text_only: bool
) -> tuple[dict[str, _Module], dict[str, LazyTensor]]:
    """(adapter parts, whole replaced tensors), both by the canonical name of the tensor they change."""
    modules: dict[str, _Module] = {}
    replacements: dict[str, LazyTensor] = {}
    for stored_name, tensor in stored.items():
        name = stored_name.removeprefix("base_model.model.")
        if match := _PART.match(name):
            key = names.canonical(match["module"] + ".weight", text_only=text_only)
            modules.setdefault(key, _Module(match["module"], {})).parts[match["part"]] = tensor
        else:
            whole = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            whole = whole.replace(".original_module.", ".")
            replacements[names.canonical(whole, text_only=text_only)] = tensor
    return modules, replacements


def _read_like(tensor: LazyTensor, shape: tuple[int, ...], name: str, where: str) -> np.ndarray:
    if tensor.shape != shape:
        raise SmoljaxError(f"{where}: {name} is {list(tensor.shape)}, the base has {list(shape)}")
    return tensor.read()


def _merged(weight: np.ndarray, module: _Module, config: AdapterConfig, where: str) -> np.ndarray:
    """float32 PyTorch-layout weight with the module's update in it."""
    parts = module.parts
    of_table = "lora_embedding_A" in parts
    first, second = ("lora_embedding_A", "lora_embedding_B") if of_table else ("lora_A", "lora_B")
    wanted = {first, second} | ({"lora_magnitude_vector"} if config.dora else set())
    if set(parts) != wanted:
        raise SmoljaxError(
            f"{where}: {module.name} has {', '.join(sorted(parts))}, must have {', '.join(sorted(wanted))}"
        )
    down = parts[first].read().astype(np.float32)
    up = parts[second].read().astype(np.float32)
    rank = down.shape[0]
    scaling = config.scaling(module.name, rank, where)
    down, up = down.reshape(rank, -1), up.reshape(up.shape[0], -1)
    if up.shape[1] != rank or up.shape[0] * down.shape[1] != weight.size:
        raise SmoljaxError(
            f"{where}: {module.name}: {first} {list(parts[first].shape)} and"
            f" {second} {list(parts[second].shape)} do not make {list(weight.shape)}"
        )
    update = (up @ down) * np.float32(scaling)
    merged = weight.astype(np.float32) + (update.T if of_table else update).reshape(weight.shape)
    if not config.dora:
        return merged
    if weight.ndim != 2:
        raise SmoljaxError(
            f"{where}: {module.name}: DoRA on a convolution is not supported; merge it with peft"
        )
    axis = 0 if of_table else 1
    magnitude = parts["lora_magnitude_vector"].read().astype(np.float32)
    norm = np.linalg.norm(merged, axis=axis)
    if magnitude.shape != norm.shape:
        raise SmoljaxError(
            f"{where}: {module.name}: lora_magnitude_vector is {list(magnitude.shape)},"
            f" must be {list(norm.shape)}"
        )
    return np.expand_dims(magnitude / norm, axis) * merged
