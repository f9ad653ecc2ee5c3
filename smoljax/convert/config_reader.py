"""Keys of a `config.json`: checked for their type, cross-checked with the tensors, inferred where left out."""

import math
from collections.abc import Mapping
from typing import Any

from smoljax.errors import SmoljaxError


class ConfigReader:
    """Reads keys, infers what is missing, cross-checks what is there, and keeps the notes.

    Args:
      where: the file's name for messages.
      sizes: what the tensors tell (`smoljax.convert.names.bind_sizes`).

    `prefix` in the methods is the section a key stands in, for messages: "text_config.".
    """

    def __init__(self, where: str, sizes: Mapping[str, tuple[int, str]]) -> None:
        self.where = where
        self.sizes = sizes
        self.notes: list[str] = []

    def given(self, data: Mapping[str, Any], key: str, default: Any, prefix: str = "") -> Any:
        """The stated value, else the reference's default with a note."""
        if data.get(key) is not None:
            return data[key]
        self.notes.append(f"{prefix}{key} is not in {self.where}; the reference's default {default} is used")
        return default

    def whole(self, value: Any, key: str, prefix: str = "", least: int = 1) -> int:
        """`value` as an int; raises SmoljaxError where it is no whole number (300.0 is one) or too small."""
        known = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not known or value < least:
            raise SmoljaxError(
                f"{self.where}: {prefix}{key} is {value!r}; it must be a whole number, at least {least}"
            )
        return int(value)

    def number(self, value: Any, key: str, prefix: str = "") -> float:
        """`value` as a float; raises SmoljaxError where it is no finite number above 0."""
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not 0 < value < math.inf:
            raise SmoljaxError(
                f"{self.where}: {prefix}{key} is {value!r}; it must be a finite number above 0"
            )
        return float(value)

    def sized(self, data: Mapping[str, Any], key: str, letter: str, prefix: str) -> int:
        """A value that a tensor shape tells: cross-checked where stated, inferred where not."""
        value = data.get(key)
        if value is not None:
            value = self.whole(value, key, prefix)
        if letter not in self.sizes:
            if value is None:
                raise SmoljaxError(f"{self.where}: {prefix}{key} is missing and no tensor tells it")
            return value
        size, origin = self.sizes[letter]
        if value is None:
            self.notes.append(f"{prefix}{key} is not in {self.where}; {size} is read off {origin}")
        elif value != size:
            raise SmoljaxError(f"{self.where}: {prefix}{key} is {value}, but {origin} says {size}")
        return size

    def rows(self, letter: str) -> tuple[int, str] | None:
        """The number a letter is bound to, and where."""
        return self.sizes.get(letter)

    def refuse(self, data: Mapping[str, Any], key: str, allowed: tuple[Any, ...], prefix: str) -> None:
        """Raises when a key that changes the maths has a value that is not implemented."""
        if key in data and data[key] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed if value is not None)
            raise SmoljaxError(f"{self.where}: {prefix}{key} is {data[key]!r}; supported: {wanted or 'null'}")
