"""Config files: Python that builds a `TrainConfig`, overrides from the command line, and the resolved copy."""

import ast
import dataclasses
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smoljax.errors import SmoljaxError, UsageError
from smoljax.training.config import TrainConfig

RESOLVED = "config.json"
# What may differ when a run goes on: none of these changes a number that the run computes.
FREE = (
    "name",
    "mesh",
    "checkpoint",
    "guard",
    "log_every",
    "validate_every",
    "validation",
    "validation_batches",
)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The `TrainConfig` of a config file, with overrides.

    Args:
      path: a Python file that defines `config = TrainConfig(…)`, or a function `config()` that returns one. It may
        import what lies in the current folder.
      overrides: "key=value" with dotted keys; an element of a tuple by its number, an objective also by its
        name: "optimizer.lr=3e-4", "data.sources.0.weight=2", "objectives.contrastive.weight=0.5".

    Raises:
      UsageError: no such file, no config in it, a key or value that does not fit.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file}: no such config file")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found = runpy.run_path(str(file)).get("config")
    except (SmoljaxError, UsageError):
        raise
    except Exception as error:
        raise SmoljaxError(f"{file}: the config file fails with {type(error).__name__}: {error}") from error
    config = found() if callable(found) else found
    if not isinstance(config, TrainConfig):
        raise UsageError(f"{file}: must define `config`, a smoljax.training.config.TrainConfig")
    for item in overrides:
        config = override(config, item)
    return config


def override(config: TrainConfig, item: str) -> TrainConfig:
    """The config with one "key=value" put in, as `read_config` takes them."""
    key, equals, text = item.partition("=")
    if not equals:
        raise UsageError(f"--set {item}: must read key=value")
    return _replace(config, key.strip().split("."), text.strip(), key.strip())


def _replace(node: Any, keys: list[str], text: str, whole: str) -> Any:
    if not keys:
        return _parse(node, text, whole)
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        names = [str(getattr(item, "name", index)) for index, item in enumerate(node)]
        where = names.index(key) if key in names else int(key) if key.isdigit() else -1
        if not 0 <= where < len(node):
            raise UsageError(f"--set {whole}: {key!r} is none of {', '.join(names)}")
        return (*node[:where], _replace(node[where], rest, text, whole), *node[where + 1 :])
    if isinstance(node, Mapping):
        value = _replace(node[key], rest, text, whole) if key in node else _literal(text)
        return {**node, key: value}
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise UsageError(f"--set {whole}: there is nothing under a value of {node!r}")
    fields = [item.name for item in dataclasses.fields(node)]
    if key not in fields:
        raise UsageError(f"--set {whole}: no key {key!r}; there are {', '.join(fields)}")
    return dataclasses.replace(node, **{key: _replace(getattr(node, key), rest, text, whole)})


def _parse(old: Any, text: str, whole: str) -> Any:
    value = _literal(text)
    if isinstance(old, bool) and not isinstance(value, bool):
        value = {"true": True, "false": False}.get(text.lower(), value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if old is not None and value is not None and type(old) is not type(value):
        raise UsageError(f"--set {whole}={text}: must be {type(old).__name__}, as {old!r} is")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The config as plain JSON; functions by name, objectives with their names."""
    return json.loads(json.dumps(_plain(config), default=str))


def _plain(node: Any) -> Any:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        found = {item.name: _plain(getattr(node, item.name)) for item in dataclasses.fields(node)}
        name = getattr(type(node), "name", None)
        return {"kind": name, **found} if isinstance(name, str) else found
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [_plain(item) for item in node]
    if callable(node):
        return f"{node.__module__}.{getattr(node, '__qualname__', type(node).__name__)}"
    return node


def check_same(config: TrainConfig, workdir: Path) -> None:
    """Refuses a folder that holds another run.

    Raises:
      UsageError: naming the first values that differ.
    """
    file = workdir / RESOLVED
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise SmoljaxError(f"{file}: not valid JSON ({error}); remove the folder to start anew") from error
    now = as_json(config)
    for tree in (before, now):
        for key in FREE:
            tree.pop(key, None)
    differing = list(_differences(before, now, ""))
    if differing:
        raise UsageError(
            f"{workdir} holds another run: {'; '.join(differing[:4])}; take another --workdir, or remove this one"
        )


def _differences(before: Any, now: Any, path: str) -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (a, b) in enumerate(zip(before, now, strict=True)):
            yield from _differences(a, b, f"{path}.{index}")
    elif before != now:
        yield f"{path} was {before!r}, now {now!r}"


def write_resolved(config: TrainConfig, workdir: Path) -> None:
    """Writes the config as it is in force to `workdir/config.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RESOLVED).write_text(json.dumps(as_json(config), indent=2) + "\n")
