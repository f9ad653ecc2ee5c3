"""`--set key=value`: all changes to a tree of frozen dataclasses at once, each value of its field's type."""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from smoljax.errors import UsageError

T = TypeVar("T")

#: Key → text of a value, or the changes below it.
Changes = dict[str, Any]


def override(config: T, items: Sequence[str]) -> T:
    """The config with "key=value" items put in.

    Values that check each other are put in together, so `model.architecture=None` and `model.start=FOLDER` may be
    given as two items, in any order.

    Args:
      config: a dataclass of dataclasses, tuples, mappings and plain values.
      items: dotted keys; an element of a tuple by its number, an objective also by its name. Values are Python
        literals; what is none is text.

    Raises:
      UsageError: no such key, a value of another type, or one that the dataclass refuses.
    """
    changes: Changes = {}
    for item in items:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"--set {item}: must read key=value")
        *parents, last = key.split(".")
        place = changes
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {key}: {parent} itself is set too")
        if isinstance(place.get(last), dict):
            raise UsageError(f"--set {key}: what lies under it is set too")
        place[last] = text
    return _changed(config, changes, type(config), "")


def _changed(node: Any, changes: Changes | str, hint: Any, path: str) -> Any:
    if isinstance(changes, str):
        return parse(changes, hint, node, path)
    if isinstance(node, tuple):
        items = list(node)
        names = [str(getattr(item, "name", index)) for index, item in enumerate(items)]
        for key, below in changes.items():
            where = names.index(key) if key in names else int(key) if key.isdigit() else -1
            if not 0 <= where < len(items):
                raise UsageError(f"--set {_join(path, key)}: {key!r} is none of {', '.join(names)}")
            items[where] = _changed(items[where], below, type(items[where]), _join(path, key))
        return tuple(items)
    if isinstance(node, Mapping):
        new = dict(node)
        for key, below in changes.items():
            old = node.get(key)
            missing = {} if isinstance(below, dict) and old is None else old
            new[key] = _changed(missing, below, Any if old is None else type(old), _join(path, key))
        return new
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        first = _join(path, next(iter(changes)))
        raise UsageError(f"--set {first}: there is nothing under a value of {node!r}")
    hints = typing.get_type_hints(type(node))
    fields = [item.name for item in dataclasses.fields(node)]
    for key in changes:
        if key not in fields:
            raise UsageError(f"--set {_join(path, key)}: no key {key!r}; there are {', '.join(fields)}")
    return dataclasses.replace(
        node,
        **{
            key: _changed(getattr(node, key), below, hints[key], _join(path, key))
            for key, below in changes.items()
        },
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def parse(text: str, hint: Any, old: Any, path: str) -> Any:
    """The value that a text stands for, in the type of its field."""
    options = _options(hint)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if bool in options:
        value = {"true": True, "false": False}.get(text.lower(), value)
    for candidate in _readings(value, text):
        if any(_fits(candidate, option) for option in options):
            return candidate
    names = " or ".join("None" if option is types.NoneType else _name(option) for option in options)
    raise UsageError(f"--set {path}={text}: must be {names}, as {old!r} is")


def _readings(value: Any, text: str) -> list[Any]:
    """The value, and what else it can be taken for: 1 as 1.0, 2e3 as 2000, digits as text."""
    found = [value]
    if isinstance(value, int) and not isinstance(value, bool):
        found.append(float(value))
    if isinstance(value, float) and value.is_integer():
        found.append(int(value))
    return [*found, text]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, option: Any) -> bool:
    if option is Any:
        return True
    if option in (None, types.NoneType):
        return value is None
    origin = get_origin(option) or option
    if origin is Literal:
        return isinstance(value, str)  # the dataclass itself says which are known
    if not isinstance(origin, type) or (isinstance(value, bool) and origin is not bool):
        return False
    if origin is tuple and isinstance(value, tuple):
        inside = get_args(option)
        return not inside or all(any(_fits(item, o) for o in _options(inside[0])) for item in value)
    return isinstance(value, origin)


def _name(option: Any) -> str:
    return (
        "text" if option is str or get_origin(option) is Literal else getattr(option, "__name__", str(option))
    )
