"""The report of `smoljax inspect`: gathered by one function, printed by another."""

import math
import re
from pathlib import Path
from typing import Any

from smoljax.cli import common
from smoljax.config import SmolVLMConfig, to_dict
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves
from smoljax.presets import PRESETS
from smoljax.training.config import MeshConfig

BYTES = {"float32": 4, "bfloat16": 2}


def describe(model: str, full: bool = False, mesh: MeshConfig | None = None) -> dict[str, Any]:
    """Config, parameters, memory and parity notes of a model or a released size; no weights are read.

    Args:
      model: a MODEL of the command line, or a key of `smoljax.presets.PRESETS`.
      full: one row a tensor instead of one row a group of equal layers.
      mesh: adds how it splits each tensor, and the bytes that a device holds of it.
    """
    from smoljax.nn.smolvlm import abstract_params

    if model in PRESETS and not Path(model).exists() and not _known(model):
        checkpoint = Checkpoint(PRESETS[model](), {}, source="released size, no weights")
    else:
        checkpoint = _open(model)
    config = checkpoint.config
    leaves = dict(iterate_leaves(abstract_params(config)))
    count = sum(leaf.size for leaf in leaves.values())
    split = None if mesh is None else _splits(config, leaves, mesh)
    return {
        "model": model,
        "source": checkpoint.source,
        "stored_dtype": checkpoint.stored_dtype or None,
        "untrained": checkpoint.untrained,
        "config": to_dict(config),
        "tensors": len(leaves),
        "parameters": count,
        "parts": _parts(leaves),
        "table": [
            {"path": shown, "shape": shape, "parameters": number}
            | (
                {}
                if split is None
                else {"split": split[own[0]][0], "device_bytes": sum(split[p][1] for p in own)}
            )
            for shown, shape, number, own in _rows(leaves, full)
        ],
        "device_bytes": None if split is None else sum(held for _, held in split.values()),
        "memory_bytes": {name: count * size for name, size in BYTES.items()},
        "kv_cache_bytes_per_token": {name: _cache_bytes(config) * size for name, size in BYTES.items()},
        "image_tokens_per_tile": config.image_seq_len,
        "parity": [*parity_notes(config), *checkpoint.notes],
    }


def parity_notes(config: SmolVLMConfig) -> list[str]:
    """What decides whether another implementation gives the same numbers for this model."""
    notes = [
        f"RoPE base {config.text.rope_theta:g}, half-split; RMSNorm epsilon {config.text.rms_norm_eps:g}",
        "logits: the word table itself (tied)"
        if config.tie_embeddings
        else "logits: a head of its own (untied)",
    ]
    if config.vision is not None:
        notes += [
            f"LayerNorm epsilon {config.vision.layer_norm_eps:g} in all vision norms, the last one included",
            f"vision position ids: {config.vision.position_ids}; full tiles as in transformers ≥ 4.57 (4.55 shifts)",
            f"pixel shuffle {config.scale_factor}: {config.image_seq_len} image tokens a tile",
            f"connector: {config.sharing.connector}; image tokens in the decoder: {config.sharing.image_attention}",
        ]
    return notes


def render(report: dict[str, Any]) -> None:
    """Prints a report as tables."""
    from rich.table import Table

    console = common.console()
    stored = f", stored as {report['stored_dtype']}" if report["stored_dtype"] else ""
    untrained = ", untrained: random weights" if report["untrained"] else ""
    console.print(f"[bold]{report['model']}[/bold]  ({report['source']}{stored}{untrained})")
    for part in ("vision", "text"):
        if report["config"][part] is not None:
            fields = ", ".join(f"{key} {value}" for key, value in report["config"][part].items())
            console.print(f"[bold]{part}[/bold]: {fields}")
    rest = {k: v for k, v in report["config"].items() if k not in ("vision", "text", "compute")}
    console.print("[bold]model[/bold]: " + ", ".join(f"{key} {value}" for key, value in rest.items()))
    more = ("split over", "MB a device") if report["device_bytes"] is not None else ()
    table = Table("path", "shape", "parameters", *more, box=None, header_style="bold", pad_edge=False)
    for column in (table.columns[2], *table.columns[4:]):
        column.justify = "right"
    for row in report["table"]:
        own = (row["split"], f"{row['device_bytes'] / 1e6:,.2f}") if more else ()
        table.add_row(row["path"], "×".join(map(str, row["shape"])), f"{row['parameters']:,}", *own)
    for part, count in report["parts"].items():
        table.add_row(f"[bold]{part}[/bold]", "", f"[bold]{count:,}[/bold]")
    table.add_row(
        "[bold]all[/bold]", f"{report['tensors']} tensors", f"[bold]{report['parameters']:,}[/bold]"
    )
    console.print(table)
    if more:
        held = report["device_bytes"] or 0
        console.print(
            f"[bold]sharding[/bold]: {held / 1e6:,.1f} MB of float32 parameters a device; "
            "gradient and AdamW's moments three times that"
        )
    memory = ", ".join(f"{size / 1e6:,.0f} MB in {name}" for name, size in report["memory_bytes"].items())
    cache = ", ".join(
        f"{size / 1e3:,.1f} kB in {name}" for name, size in report["kv_cache_bytes_per_token"].items()
    )
    console.print(f"[bold]memory[/bold]: weights {memory}; KV cache a token {cache}")
    for line in report["parity"]:
        console.print(f"[bold]parity[/bold]: {line}")


def _known(model: str) -> bool:
    from smoljax.models import list_models

    return any(entry.name == model and entry.path is not None for entry in list_models())


def _open(model: str) -> Checkpoint:
    from smoljax.convert.convert import open_checkpoint
    from smoljax.models import resolve

    return open_checkpoint(resolve(model), resolve=resolve)


def _parts(leaves: dict[str, Any]) -> dict[str, int]:
    parts: dict[str, int] = {}
    for path, leaf in leaves.items():
        part = path.split("/")[0]
        parts[part] = parts.get(part, 0) + leaf.size
    return parts


def _rows(leaves: dict[str, Any], full: bool) -> list[tuple[str, list[int], int, list[str]]]:
    """What is shown, shape, parameters, and the paths that the row stands for."""
    groups: dict[str, list[str]] = {}
    for path in leaves:
        groups.setdefault(path if full else re.sub(r"layers_\d+", "layers_*", path), []).append(path)
    rows = []
    for path, members in groups.items():
        shown = path.replace("layers_*", f"layers_{{0…{len(members) - 1}}}")
        size = sum(leaves[member].size for member in members)
        rows.append((shown, list(leaves[members[0]].shape), size, members))
    return rows


def _splits(config: SmolVLMConfig, leaves: dict[str, Any], mesh: MeshConfig) -> dict[str, tuple[str, int]]:
    """Path → how it is split, in words, and the float32 bytes that a device holds of it."""
    from jax.sharding import AbstractMesh

    from smoljax.training.sharding import AXES, rules_of, spec_of

    sizes = tuple(max(1, getattr(mesh, axis)) for axis in AXES)
    partition = rules_of(mesh).partition(AbstractMesh(sizes, AXES))
    found = {}
    for path, leaf in leaves.items():
        spec = spec_of(path, leaf.shape, partition, config)
        split = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
        parts = ["+".join(axes) or "·" for axes in split]
        ways = math.prod(partition.mesh.shape[axis] for axes in split for axis in axes)
        found[path] = (", ".join(parts), leaf.size * BYTES["float32"] // ways)
    return found


def _cache_bytes(config: SmolVLMConfig) -> int:
    return 2 * config.text.num_layers * config.text.num_kv_heads * config.text.head_dim
