"""The safetensors container: 8 bytes of header length, a JSON header, then raw little-endian tensors.

Read and written here directly, so that bfloat16 needs no torch, tensors are views of a memory map and a
file is written one tensor at a time; byte for byte the file the `safetensors` package writes.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from smoljax.errors import SmoljaxError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
# The order in which the reference lays tensors out: by dtype, widest first, then by name.
_ORDER = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is on disk until `read()` is called.

    Attributes:
      shape: as stored.
      dtype: as stored; None for a type that NumPy has no name for (quantised formats).
      read: the array, possibly a read-only view of the file.
      stored: name of the stored dtype, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    read: Callable[[], np.ndarray]
    stored: str


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file by name, memory-mapped and read-only.

    Raises:
      SmoljaxError: the header is corrupt, or the file is shorter or longer than the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            raise SmoljaxError(f"{path}: no safetensors file (header length {length} bytes); fetch it again")
        if length > size - 8:
            raise SmoljaxError(
                f"{path}: truncated: the header alone needs {length + 8} bytes of {size}; fetch it again"
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            table = {name: _row(row) for name, row in header.items() if name != "__metadata__"}
            _check_offsets(table)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SmoljaxError(f"{path}: corrupt safetensors header ({error}); fetch it again") from error
    start = 8 + length
    end = max((stop for _, _, _, stop in table.values()), default=0)
    if start + end > size:
        raise SmoljaxError(f"{path}: truncated: {start + end} bytes expected, {size} found; fetch it again")
    if start + end < size:
        raise SmoljaxError(f"{path}: {size - start - end} bytes too long for its header; fetch it again")
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=start) if end else np.zeros(0, np.uint8)
    return {name: _lazy(path, name, data, row) for name, row in table.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError(f"{len(pairs) - len(table)} name(s) twice")
    return table


def _check_offsets(table: Mapping[str, tuple[str, tuple[int, ...], int, int]]) -> None:
    """Tensors must follow one another without hole or overlap."""
    expected = 0
    for name, (_, _, begin, stop) in sorted(table.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            raise ValueError(f"{name} begins at {begin}, must begin at {expected}")
        expected = stop


def _row(row: Any) -> tuple[str, tuple[int, ...], int, int]:
    tag, shape, (begin, stop) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, stop)) or begin > stop:
        raise ValueError(f"bad shape {list(shape)} or offsets [{begin}, {stop}]")
    return str(tag), shape, begin, stop


def _lazy(path: Path, name: str, data: np.ndarray, row: tuple[str, tuple[int, ...], int, int]) -> LazyTensor:
    tag, shape, begin, stop = row
    dtype = DTYPES.get(tag)
    if dtype is not None and math.prod(shape) * dtype.itemsize != stop - begin:
        raise SmoljaxError(
            f"{path}: corrupt safetensors header: {name} {list(shape)} {tag} in {stop - begin} bytes;"
            " fetch it again"
        )

    def read() -> np.ndarray:
        if dtype is None:
            raise SmoljaxError(f"{path}: {name} is stored as {tag}, which is not read")
        return np.asarray(data[begin:stop]).view(dtype).reshape(shape)

    return LazyTensor(shape, dtype, read, tag)


def write_order(tensors: Mapping[str, tuple[np.dtype[Any], int]]) -> list[str]:
    """Names in the order the reference writes them; `tensors` maps name → (dtype, elements)."""
    return sorted(tensors, key=lambda name: (_ORDER.index(_TAGS[tensors[name][0]]), name))


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> int:
    """Writes one file, asking `read` for one tensor at a time.

    Args:
      path: the file to make.
      tensors: name → (shape, dtype).
      read: the array of a name, of exactly that shape and dtype.
      metadata: text for the header; the reference expects {"format": "pt"}.

    Returns:
      The bytes written.
    """
    order = write_order({name: (dtype, math.prod(shape)) for name, (shape, dtype) in tensors.items()})
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        shape, dtype = tensors[name]
        stop = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _TAGS[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            array = np.ascontiguousarray(read(name))
            if array.shape != tensors[name][0] or array.dtype != tensors[name][1]:
                raise SmoljaxError(
                    f"{name} is {array.dtype} {list(array.shape)}, announced as {tensors[name]}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
    return 8 + len(text) + offset
