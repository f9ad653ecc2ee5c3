"""Finding and opening the weight files of a folder: safetensors or PyTorch pickles, one file or many.

Tensors come back lazily (`LazyTensor`), so that a checkpoint never lies in memory more often than it must.
"""

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from smoljax.convert.safetensors_file import LazyTensor, open_safetensors
from smoljax.errors import SmoljaxError

# In the order in which they are looked for; the reference has the same preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_weights(folder: Path, names: Iterable[str] = WEIGHT_FILES) -> Path:
    """The weight file or index of a folder.

    Raises:
      SmoljaxError: there is no folder, or no weights in it (says what was found instead).
    """
    if not folder.is_dir():
        raise SmoljaxError(f"{folder}: no such folder")
    names = tuple(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise SmoljaxError(f"{folder}: no weights ({', '.join(names)}); it holds {shown or 'nothing'}")


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """All tensors of a weight file or of the shards that an index names, by stored name.

    Raises:
      SmoljaxError: a truncated or corrupt file, a missing shard, an index and its shards that disagree, a
        pickle with anything but tensors in it (nothing of it is executed), or torch not installed.
    """
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return open_pickle(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises SmoljaxError that names the file."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise SmoljaxError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SmoljaxError(f"{path}: is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise SmoljaxError(f"{path}: must hold a JSON object")
    return data


def _open_sharded(index_path: Path) -> dict[str, LazyTensor]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SmoljaxError(f"{index_path}: has no weight_map of tensor names to file names")
    folder = index_path.parent
    shards = sorted(set(weight_map.values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise SmoljaxError(f"{index_path}: names files outside its folder: {', '.join(outside)}")
    if absent := [name for name in shards if not (folder / name).is_file()]:
        raise SmoljaxError(f"{index_path}: missing shard(s) {', '.join(absent)}; fetch them again")
    tensors: dict[str, LazyTensor] = {}
    twice: list[str] = []
    for shard in shards:
        for name, tensor in open_weights(folder / shard).items():
            if name in tensors:
                twice.append(name)
            tensors[name] = tensor
    if twice:
        raise SmoljaxError(f"{index_path}: in more than one shard: {', '.join(twice)}")
    if absent := [name for name in weight_map if name not in tensors]:
        raise SmoljaxError(f"{index_path}: names tensor(s) that no shard holds: {', '.join(absent)}")
    if extra := [name for name in tensors if name not in weight_map]:
        raise SmoljaxError(f"{index_path}: does not name tensor(s) that its shards hold: {', '.join(extra)}")
    return tensors


def open_pickle(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a `.bin` that torch saved, read with `weights_only=True`: no code of the file runs.

    Raises:
      SmoljaxError: torch is not installed, or the file is damaged or holds more than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise SmoljaxError(
            f'{path}: reading PyTorch pickles needs torch: pip install "smoljax[torch]"'
        ) from error
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SmoljaxError(
            f"{path}: refused: the pickle is damaged or holds code, not only tensors; nothing of it was run"
            " (ask for a safetensors file)"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SmoljaxError(
            f"{path}: truncated or damaged PyTorch file ({first[:120]}); fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SmoljaxError(f"{path}: holds no flat table of tensors (is it a training checkpoint?)")
    return {str(name): _from_torch(tensor) for name, tensor in state.items()}


def _from_torch(tensor: Any) -> LazyTensor:
    stored = str(tensor.dtype).removeprefix("torch.")
    known = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
    dtype = (
        np.dtype(ml_dtypes.bfloat16)
        if stored == "bfloat16"
        else np.dtype(stored)
        if stored in known
        else None
    )

    def read() -> np.ndarray:
        import torch

        if dtype is None:
            raise SmoljaxError(f"a tensor is stored as {stored}, which is not read")
        plain = tensor.detach().contiguous()
        if stored == "bfloat16":
            return plain.view(torch.uint16).numpy().view(dtype)
        return plain.numpy()

    return LazyTensor(tuple(tensor.shape), dtype, read, stored)


# Bit masks of the exponent: all of its bits set means NaN or infinity.
_EXPONENT = {
    "float32": (np.uint32, 0x7F80_0000),
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
}
_CHUNK = 1 << 22


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; float32, bfloat16, float16 or whole numbers, any memory order."""
    if array.dtype.kind in "iu":
        return True
    bits, mask = _EXPONENT[str(array.dtype)]
    flat = (array if array.flags.c_contiguous else array.T).reshape(-1).view(bits)
    mask = bits(mask)
    return not any(((flat[i : i + _CHUNK] & mask) == mask).any() for i in range(0, flat.size, _CHUNK))


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """`array` in another float type, rounded to nearest even; as it is for None and for its own type."""
    if dtype is None or str(array.dtype) == dtype:
        return array
    return array.astype(np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype))
