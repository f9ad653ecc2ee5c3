"""Folders in the reference's layout (`config.json`, weight files, processor files) ↔ `Checkpoint`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.hf_config import amend, from_hf_config, is_text_only, to_hf_config
from smoljax.convert.safetensors_file import LazyTensor, write_safetensors
from smoljax.convert.stored_names import read_canonical
from smoljax.convert.tensor_files import all_finite, cast, find_weights, open_weights, read_json
from smoljax.convert.write_aside import write_aside
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.quantised import Quantisation
from smoljax.processing.config import PROCESSOR_FILES
from smoljax.sharing import RELEASED

# What travels with the weights, verbatim, where a folder has it.
SMALL_FILES = ("config.json", *PROCESSOR_FILES)
DTYPES = ("float32", "bfloat16", "float16")
# In `config.json`, only where it is true; the reference ignores keys it does not know.
UNTRAINED_KEY = "smoljax_untrained"


def load_hf(folder: str | Path, dtype: str | None = None) -> Checkpoint:
    """Reads a checkpoint of SmolVLM, SmolVLM2, Idefics3 or a Llama (SmolLM2) as the reference saves it.

    Args:
      folder: has `config.json` and `model.safetensors` or `pytorch_model.bin`, whole or in shards.
      dtype: "float32" or "bfloat16" casts the weights; None keeps what is stored.

    Returns:
      Params in the unstacked layout; the small files verbatim.

    Raises:
      SmoljaxError: not such a folder, a damaged file, a config that disagrees with the tensors, names that
        are missing, left over, mis-shaped or there twice (all are listed), NaN or infinite weights.
    """
    check_dtype(dtype)
    opened = _open(Path(folder))
    return dataclasses.replace(opened.checkpoint, params=_read_params(opened, dtype))


def open_hf(folder: str | Path) -> Checkpoint:
    """`load_hf` without the weights, from `config.json` and the headers; `params` stays empty.

    Where tied tables are both stored, these two are read: whether they differ decides the architecture.

    Raises:
      SmoljaxError: as `load_hf`, but for NaN or infinite weights.
    """
    return _open(Path(folder)).checkpoint


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A folder whose headers are read and sound: the checkpoint without params, and where its params are."""

    checkpoint: Checkpoint
    entries: list[names.Entry]
    tensors: Mapping[str, LazyTensor]
    weights: Path


def _open(folder: Path) -> _Opened:
    if folder.is_dir() and not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise SmoljaxError(f"{folder}: no config.json, so no model folder; it holds {there or 'nothing'}")
    weights = find_weights(folder)
    where = str(folder / "config.json")
    data = read_json(folder / "config.json")
    text_only = is_text_only(data, where)
    tensors, duplicates, notes = read_canonical(open_weights(weights), text_only=text_only)
    parsed = from_hf_config(data, {name: tensor.shape for name, tensor in tensors.items()}, where)
    config, amended = parsed.config, parsed.amended
    notes += parsed.notes
    if config.tie_embeddings:
        untied, note = _settle_tied(tensors)
        notes += note
        if untied:
            config = dataclasses.replace(config, tie_embeddings=False)
            amended = amend(amended or data, config.text.vocab_size, tied=False)
    entries = names.expand(config)
    wanted = {entry.torch: entry.shape for entry in entries}
    names.check_same(
        wanted, {name: tensor.shape for name, tensor in tensors.items()}, str(weights), duplicates=duplicates
    )
    stored = {entry.torch: tensors[entry.torch] for entry in entries}
    if odd := [
        f"{name} ({tensor.stored})" for name, tensor in stored.items() if str(tensor.dtype) not in DTYPES
    ]:
        raise SmoljaxError(f"{weights}: stored as none of {', '.join(DTYPES)} (quantised?): {', '.join(odd)}")
    files = read_small_files(folder)
    if amended is not None:
        files["config.json"] = json_bytes(amended)
    kinds = {str(tensor.dtype) for tensor in stored.values()}
    checkpoint = Checkpoint(
        config=config,
        params={},
        files=files,
        notes=notes,
        source=str(folder),
        untrained=data.get(UNTRAINED_KEY) is True,
        stored_dtype=kinds.pop() if len(kinds) == 1 else "mixed",
    )
    return _Opened(checkpoint, entries, tensors, weights)


def check_dtype(dtype: str | None) -> None:
    """Raises UsageError for a dtype weights are not kept in."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")


def read_small_files(folder: Path) -> dict[str, bytes]:
    """The small files of a folder by name."""
    return {name: (folder / name).read_bytes() for name in SMALL_FILES if (folder / name).is_file()}


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """JSON as the reference formats it."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _settle_tied(tensors: dict[str, LazyTensor]) -> tuple[bool, tuple[str, ...]]:
    """Leaves one table of a tied pair, under the embedding's name; (both are stored and differ, notes)."""
    head = tensors.get(names.HEAD_NAME)
    table = tensors.get(names.EMBED_NAME)
    if head is None:
        return False, ()
    if table is not None and not (
        head.shape == table.shape
        and head.stored == table.stored
        and np.array_equal(
            np.atleast_1d(head.read()).view(np.uint8), np.atleast_1d(table.read()).view(np.uint8)
        )
    ):
        note = "tie_word_embeddings is true but two tables that differ are stored; both are kept, untied"
        return True, (note,)
    tensors[names.EMBED_NAME] = tensors.pop(names.HEAD_NAME)
    if table is None:
        return False, ()
    return False, ("the tied word table is stored twice, as lm_head too; both are equal and one is kept",)


def _read_params(opened: _Opened, dtype: str | None) -> dict[str, Any]:
    params: dict[str, Any] = {}
    bad: list[str] = []
    for entry in opened.entries:
        array = opened.tensors[entry.torch].read()
        if not all_finite(array):
            bad.append(entry.torch)
        set_leaf(params, entry.ours, names.to_ours(cast(array, dtype), entry))
    if bad:
        raise SmoljaxError(
            f"{opened.weights}: NaN or infinite values in {len(bad)} tensor(s): {', '.join(bad)}"
        )
    return params


def save_hf(
    checkpoint: Checkpoint,
    folder: str | Path,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> int:
    """Writes a folder that `from_pretrained` of the reference reads.

    `config.json` is the one the checkpoint came with, byte for byte, unless its dtype key or the network
    has changed. Tensors go back byte for byte too (where `dtype` does not cast them), but not how they were
    spread over files: shards follow `max_shard_bytes`, whatever the source had. The folder appears whole or
    not at all.

    Args:
      checkpoint: params in any layout (stacked layers are unstacked), NumPy or jax arrays.
      folder: must not exist, or be empty.
      dtype: what to store; None keeps each array's own.
      max_shard_bytes: above this the weights are split, with `model.safetensors.index.json`.

    Returns:
      Bytes of weights written.

    Raises:
      SmoljaxError: params that do not fit the config (all names are listed), NaN or infinite weights, a
        destination that is not empty. Nothing is written then.
    """
    check_dtype(dtype)
    text_only = checkpoint.config.vision is None
    _check_prompt(checkpoint)
    entries = names.expand(checkpoint.config)
    wanted = {entry.ours: jax.ShapeDtypeStruct(entry.our_shape, np.float32) for entry in entries}
    leaves = checked_leaves(checkpoint, wanted)
    stored = {
        names.file_name(entry.torch, text_only=text_only): (entry, _storage_dtype(leaves[entry.ours], dtype))
        for entry in entries
    }

    def read(name: str) -> np.ndarray:
        entry, wanted = stored[name]
        return names.to_torch(cast(np.asarray(leaves[entry.ours]), str(wanted)), entry)

    with write_aside(Path(folder)) as scratch:
        shards = _split(stored, max_shard_bytes)
        for shard, members in shards.items():
            write_safetensors(scratch / shard, {name: read(name) for name in members}, {"format": "pt"})
        total = sum(entry_bytes(entry, kind) for entry, kind in stored.values())
        if len(shards) > 1:
            weight_map = {name: shard for shard, members in shards.items() for name in members}
            index = {
                "metadata": {"total_parameters": checkpoint.num_parameters, "total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            (scratch / "model.safetensors.index.json").write_bytes(json_bytes(index))
        kinds = {str(kind) for _, kind in stored.values()}
        files = {**checkpoint.files, "config.json": _config_file(checkpoint, kinds)}
        for name, content in files.items():
            (scratch / name).write_bytes(content)
    return total


def entry_bytes(entry: names.Entry, dtype: np.dtype[Any]) -> int:
    """Bytes of one tensor."""
    return int(np.prod(entry.shape)) * dtype.itemsize


def _storage_dtype(array: Any, dtype: str | None) -> np.dtype[Any]:
    if dtype is None:
        return np.dtype(array.dtype)
    return np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)


def checked_leaves(
    checkpoint: Checkpoint, wanted: Mapping[str, Any], kind: Quantisation | None = None
) -> dict[str, Any]:
    """Params by path, unstacked, after the strict comparison with the tree of wanted shapes and the NaN check."""
    from smoljax.nn.stacking import unstack_layers

    leaves: dict[str, Any] = dict(iterate_leaves(unstack_layers(checkpoint.params)))
    where = checkpoint.source or "params"
    shapes = {path: tuple(leaf.shape) for path, leaf in iterate_leaves(wanted)}
    names.check_same(shapes, {path: tuple(leaf.shape) for path, leaf in leaves.items()}, where)
    known = DTYPES if kind is None else (*DTYPES, "int8", "uint8")
    if odd := [f"{path} ({leaf.dtype})" for path, leaf in leaves.items() if str(leaf.dtype) not in known]:
        raise SmoljaxError(f"{where}: not one of {', '.join(DTYPES)}: {', '.join(odd)}")
    if bad := [path for path, leaf in leaves.items() if not all_finite(np.asarray(leaf))]:
        raise SmoljaxError(f"{where}: NaN or infinite values in {len(bad)} tensor(s): {', '.join(bad)}")
    return leaves


def _check_prompt(checkpoint: Checkpoint) -> None:
    """SmoljaxError for a processor whose prompts transformers would write otherwise."""
    content = checkpoint.files.get("processor_config.json", b"")
    # Small files travel as they are, so only one that speaks of it is read.
    stated = json.loads(content).get("tile_tokens") if b'"tile_tokens"' in content else "learned"
    if stated != "learned":
        raise SmoljaxError(
            f"its prompts mark tiles by {stated!r} (tile_tokens of processor_config.json), which transformers does not "
            "know; the native format holds it"
        )


def _split(
    stored: Mapping[str, tuple[names.Entry, np.dtype[Any]]], max_shard_bytes: int
) -> dict[str, list[str]]:
    """File name → tensor names, filled in order; one file where everything fits."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (entry, dtype) in stored.items():
        size = entry_bytes(entry, dtype)
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _config_file(checkpoint: Checkpoint, kinds: set[str]) -> bytes:
    """The original `config.json` where it still describes the network, else a new one."""
    dtype = next(iter(kinds)) if len(kinds) == 1 else None
    original = checkpoint.files.get("config.json")
    data: dict[str, Any] = {}
    untrained = {UNTRAINED_KEY: True} if checkpoint.untrained else {}
    if original is not None:
        data = json.loads(original)
        if _same_network(data, checkpoint):
            restated = _restate_dtype(data, dtype)
            same = (data.pop(UNTRAINED_KEY, None) is True) == checkpoint.untrained
            return original if same and not restated else json_bytes(data | untrained)
    text = data.get("text_config", data)
    ids = {key: text.get(key, data.get(key)) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if not data and "generation_config.json" in checkpoint.files:
        generation = json.loads(checkpoint.files["generation_config.json"])
        ids = {key: generation.get(key) for key in ids}
    return json_bytes(to_hf_config(checkpoint.config, dtype=dtype or "float32", **ids) | untrained)


def _same_network(data: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    shapes = {entry.torch: entry.shape for entry in names.expand(checkpoint.config)}
    try:
        parsed = from_hf_config(data, shapes)
    except SmoljaxError:
        return False
    return parsed.amended is None and _bare(parsed.config) == _bare(checkpoint.config)


def _bare(config: Any) -> Any:
    """The config without what `config.json` has no word for."""
    vision = config.vision and dataclasses.replace(config.vision, position_ids="arange")
    return dataclasses.replace(config, vision=vision, compute=type(config.compute)(), sharing=RELEASED)


def _restate_dtype(data: dict[str, Any], dtype: str | None) -> bool:
    """Sets every stated dtype that is not `dtype` any more; True when something changed."""
    changed = False
    for holder in (data, data.get("text_config"), data.get("vision_config")):
        for key in ("torch_dtype", "dtype"):
            if dtype is not None and isinstance(holder, dict) and holder.get(key) not in (None, dtype):
                holder[key] = dtype
                changed = True
    return changed
