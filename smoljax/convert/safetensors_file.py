"""One safetensors file ↔ tensors by name, through the `safetensors` package; failures become one clear line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

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


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is on disk until `read()` is called.

    Attributes:
      shape: as stored.
      dtype: as stored; None for a type that NumPy has no name for (quantised formats).
      read: gives the array.
      stored: name of the stored dtype, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    read: Callable[[], np.ndarray]
    stored: str


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file by name, each read when it is asked for.

    Raises:
      SmoljaxError: the file is truncated, its header is corrupt, or it is no safetensors file.
    """
    try:
        handle = safe_open(path, framework="np")
        return {name: _lazy(path, name, handle) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SmoljaxError(f"{path}: truncated or no safetensors file ({reason}); fetch it again") from error


def _lazy(path: Path, name: str, handle: Any) -> LazyTensor:
    part = handle.get_slice(name)
    tag, shape = str(part.get_dtype()), tuple(part.get_shape())
    dtype = DTYPES.get(tag)

    def read() -> np.ndarray:
        if dtype is None:
            raise SmoljaxError(f"{path}: {name} is stored as {tag}, which is not read")
        return handle.get_tensor(name)

    return LazyTensor(shape, dtype, read, tag)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes one file; `metadata` is text for the header (the reference expects {"format": "pt"})."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, dict(metadata))
