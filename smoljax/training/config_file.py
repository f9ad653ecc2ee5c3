"""Config files: Python that builds a `TrainConfig`, overrides from the command line, and the resolved copy."""

import dataclasses
import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smoljax.errors import SmoljaxError, UsageError
from smoljax.training.config import Objective, TrainConfig
from smoljax.training.overrides import override, parse

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
      path: a Python file that defines `config = TrainConfig(…)`, or a function `config(…)` that returns one. It may
        import what lies in the current folder.
      overrides: of `smoljax.training.overrides.override`: "optimizer.lr=3e-4", "data.sources.0.weight=2",
        "objectives.contrastive.weight=0.5". Those that name an argument of the function are given to it.

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
    config = found
    if callable(found):
        given, overrides = _arguments(found, overrides)
        config = found(**given)
    if not isinstance(config, TrainConfig):
        raise UsageError(f"{file}: must define `config`, a smoljax.training.config.TrainConfig")
    return override(config, overrides)


def _arguments(function: Callable[..., Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The overrides that are arguments of a config function, and the others."""
    parameters = inspect.signature(function).parameters
    given: dict[str, Any] = {}
    rest: list[str] = []
    for item in overrides:
        key, equals, text = (part.strip() for part in item.partition("="))
        if equals and key in parameters:
            default = parameters[key].default
            hint = Any if default in (None, inspect.Parameter.empty) else type(default)
            given[key] = parse(text, hint, default, key)
        else:
            rest.append(item)
    spread = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        item.name for item in parameters.values() if item.default is item.empty and item.kind not in spread
    ]
    if missing := [name for name in needed if name not in given]:
        raise UsageError(f"this config asks for {', '.join(missing)}: --set {missing[0]}=VALUE")
    return given, rest


def as_json(config: Any, *, defaults: bool = True) -> dict[str, Any]:
    """The config as plain JSON; functions by name, objectives with their names.

    Args:
      config: of a run, or a part of one.
      defaults: False leaves out what is as its dataclass has it, so that a setting which is new tomorrow does not
        change what is said of a run of today.
    """
    return json.loads(json.dumps(_plain(config, defaults), default=str))


def _plain(node: Any, defaults: bool = True) -> Any:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        found = {
            item.name: _plain(getattr(node, item.name), defaults)
            for item in dataclasses.fields(node)
            if defaults or not _is_default(item, getattr(node, item.name))
        }
        if isinstance(node, Objective):
            return {"objective": node.name, **found}
        return found
    if isinstance(node, Mapping):
        return {str(key): _plain(value, defaults) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [_plain(item, defaults) for item in node]
    if callable(node):
        return f"{node.__module__}.{getattr(node, '__qualname__', type(node).__name__)}"
    return node


def _is_default(item: "dataclasses.Field[Any]", value: Any) -> bool:
    if item.default_factory is not dataclasses.MISSING:
        return value == item.default_factory()
    return item.default is not dataclasses.MISSING and value == item.default


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
    now, chosen = as_json(config), as_json(config, defaults=False)
    for tree in (before, now):
        for key in FREE:
            tree.pop(key, None)
    differing = list(_differences(before, now, chosen, ""))
    if differing:
        raise UsageError(
            f"{workdir} holds another run: {'; '.join(differing[:4])}; take another --workdir, or remove this one"
        )


def _differences(before: Any, now: Any, chosen: Any, path: str) -> Any:
    """`chosen` is `now` without defaults: a setting that an older run does not have differs only if it was chosen."""
    if isinstance(before, dict) and isinstance(now, dict):
        chosen = chosen if isinstance(chosen, dict) else {}
        for key in sorted({*before, *now}):
            if key not in before and key not in chosen:
                continue
            yield from _differences(
                before.get(key), now.get(key), chosen.get(key), f"{path}.{key}" if path else key
            )
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = chosen if isinstance(chosen, list) else [None] * len(now)
        for index, (a, b, part) in enumerate(zip(before, now, parts, strict=True)):
            yield from _differences(a, b, part, f"{path}.{index}")
    elif before != now:
        yield f"{path} was {before!r}, now {now!r}"


def write_resolved(config: TrainConfig, workdir: Path) -> None:
    """Writes the config as it is in force to `workdir/config.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RESOLVED).write_text(json.dumps(as_json(config), indent=2) + "\n")
