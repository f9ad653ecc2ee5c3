"""Uncompressed Zarr 3 arrays mapped into memory instead of read: weights cost no copy and no allocation.

Orbax writes an array that is not compressed and not cut into chunks as one file of raw little-endian numbers in
C order (Zarr 3 `sharding_indexed` codec: the shard's index, 16 bytes and a check sum, stands behind them). Such a file
can be mapped. Anything else is left to Orbax.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_INDEX_BYTES = 20
# Numbers of one byte have no order of bytes.
_RAW = ([{"configuration": {"endian": "little"}, "name": "bytes"}], [{"name": "bytes"}])


def map_array(folder: Path) -> np.ndarray | None:
    """The array of one Zarr folder as a read-only view of its file; None where it is stored otherwise.

    Raises:
      OSError, ValueError: the folder is damaged.
    """
    metadata = json.loads((folder / "zarr.json").read_text())
    shape = tuple(metadata["shape"])
    dtype = np.dtype(ml_dtypes.bfloat16 if metadata["data_type"] == "bfloat16" else metadata["data_type"])
    if not _is_one_raw_chunk(metadata, shape):
        return None
    path = folder.joinpath("c", *("0" for _ in shape))
    if path.stat().st_size != math.prod(shape) * dtype.itemsize + _INDEX_BYTES:
        return None
    return (
        np.asarray(np.memmap(path, np.uint8, "r", shape=math.prod(shape) * dtype.itemsize))
        .view(dtype)
        .reshape(shape)
    )


def _is_one_raw_chunk(metadata: dict[str, Any], shape: tuple[int, ...]) -> bool:
    codecs = metadata["codecs"]
    if len(codecs) != 1 or codecs[0].get("name") != "sharding_indexed" or not math.prod(shape):
        return False
    inner = codecs[0]["configuration"]
    outer = metadata["chunk_grid"]["configuration"]
    return (
        metadata["chunk_key_encoding"] == {"name": "default"}
        and tuple(outer["chunk_shape"]) == shape
        and tuple(inner["chunk_shape"]) == shape
        and inner["codecs"] in _RAW
        and inner.get("index_location", "end") == "end"
    )
