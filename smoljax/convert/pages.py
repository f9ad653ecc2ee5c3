"""Which pages of a mapped checkpoint are in memory: all at once, or those of the part that is at work.

Mapped weights are the file's own pages. The kernel fetches them one by one when they are first read, which an answer
would wait for, and takes them back when memory is short. Here both are said beforehand.
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from smoljax.convert.checkpoint import iterate_leaves

_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14


class Pages:
    """The mapped arrays of a model.

    Attributes:
      params: its tree of NumPy arrays; those that are not mapped are left alone.
      sparse: paths of which only some rows are ever read.
    """

    def __init__(self, params: Mapping[str, Any], sparse: tuple[str, ...] = ()) -> None:
        self.params, self.sparse = params, sparse

    def all(self) -> None:
        """Maps all pages but the sparse ones at once."""
        self._advise(tuple(self.params), _POPULATE_READ)

    def only(self, *parts: str) -> None:
        """Maps the pages of these parts ("vision", "decoder", …) and gives the others back, and freed memory too.

        What was given back is read again where it is needed after all, from the page cache as long as that has it.
        """
        self._advise(tuple(set(self.params) - set(parts)), getattr(mmap, "MADV_DONTNEED", None))
        give_back_freed()
        self._advise(parts, _POPULATE_READ)

    def _advise(self, parts: tuple[str, ...], advice: int | None) -> None:
        for path, leaf in iterate_leaves({part: self.params[part] for part in parts if part in self.params}):
            mapped = _mapping(leaf)
            if mapped is not None and advice is not None and path not in self.sparse:
                with contextlib.suppress(OSError, ValueError):  # hints; nothing depends on them
                    mapped.madvise(advice)


def give_back_freed() -> None:
    """Gives memory that the process has freed back to the system, where the C library keeps it (glibc)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library keeps what is freed
            ctypes.CDLL(None).malloc_trim(0)


def _mapping(array: Any) -> mmap.mmap | None:
    """The mapping that an array is a view of."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.base if isinstance(array, np.ndarray) else getattr(array, "obj", None)
    return array
