"""A model in memory as every reader makes it and every writer takes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.nn.quantised import Quantisation, kind_of


@dataclass(frozen=True)
class Checkpoint:
    """Config, weights and the small files that travel with them.

    Attributes:
      config: the architecture.
      params: nested dict of NumPy arrays (float32, float16 or ml_dtypes bfloat16; quantised ones as
        `smoljax.nn.quantised.quantise` makes them) with the paths of docs/architecture.md, one sub-tree a layer
        (`layers_0`, `layers_1`, …; not stacked). Arrays may be read-only and may be views (of a memory-mapped
        file, or transposed).
      files: small files by name, verbatim: `tokenizer.json`, `config.json`, `preprocessor_config.json`, ….
      notes: what a reader had to infer or drop, one sentence each.
      source: where it came from, for messages and metadata.
      untrained: the weights are known to be random (`smoljax init`); every format of ours keeps it.
      stored_dtype: how the source stores its weights, whatever they were cast to since: "bfloat16", "mixed",
        or the counted types of a GGUF file. Empty for a model that was born here.

    A reader that opens a checkpoint without its weights leaves `params` empty (`convert.open_checkpoint`).
    """

    config: SmolVLMConfig
    params: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    untrained: bool = False
    stored_dtype: str = ""

    @property
    def num_tensors(self) -> int:
        """How many weight arrays there are."""
        return sum(1 for _ in iterate_leaves(self.params))

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights hold."""
        return sum(leaf.size for _, leaf in iterate_leaves(self.params))

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(leaf.size * leaf.dtype.itemsize for _, leaf in iterate_leaves(self.params))

    @property
    def quantised(self) -> Quantisation | None:
        """How its matrices are quantised; None for plain weights."""
        return kind_of(self.params)

    @property
    def dtype(self) -> str:
        """The dtype of the weights ("float32", "bfloat16", …), "int8" or "int4", or "mixed"."""
        if (kind := self.quantised) is not None:
            return kind
        kinds = {str(leaf.dtype) for _, leaf in iterate_leaves(self.params)}
        return kinds.pop() if len(kinds) == 1 else "mixed"


def iterate_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """("vision/patch_embedding/kernel", array) of a nested dict, in its own order."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from iterate_leaves(value, path)
        else:
            yield path, value


def set_leaf(tree: dict[str, Any], path: str, value: Any) -> None:
    """Puts `value` at "a/b/c" of a nested dict, making the dicts on the way."""
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
