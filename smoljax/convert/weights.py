"""A checkpoint's weights on their way to the device, laid out for answering."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import jax

from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import kind_of, load_checkpoint, open_checkpoint, quantised
from smoljax.convert.native import holds_packed, map_packed, verify
from smoljax.convert.pages import Pages
from smoljax.errors import SmoljaxError
from smoljax.nn.packed import pack
from smoljax.nn.quantised import Quantisation
from smoljax.nn.smolvlm import Weights, shapes_of
from smoljax.nn.stacking import stack_layers, unstack_layers


@dataclass(frozen=True)
class StoredWeights:
    """Weights that are mapped where they lie, if they lie there as they are wanted, and read otherwise.

    Attributes:
      path: of the checkpoint.
      dtype: of activations.
      wanted: how the weights are to be kept; None: quantised ones as they are stored, others in `dtype`.
      scan_layers: layers stacked instead of apart.
      resolve: from the name of a LoRA folder's base to where it is.
    """

    path: Path
    dtype: str
    wanted: Weights | None
    scan_layers: bool
    resolve: Callable[..., Path]

    @cached_property
    def native(self) -> bool:
        """Whether they lie in a native folder, which says all else without them."""
        return kind_of(self.path) == "native"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Config, files and notes; of a native folder without the weights.

        Raises:
          SmoljaxError: it is not sound, or its weights cannot be kept as they are wanted.
        """
        return open_checkpoint(self.path) if self.native else self._read()

    @property
    def kept(self) -> Weights:
        """How they are kept."""
        stored = self.checkpoint.stored_dtype
        rounded = stored if stored in get_args(Quantisation) else None
        return self.wanted or rounded or self.dtype  # type: ignore[return-value]

    @cached_property
    def mapped(self) -> dict[str, Any] | None:
        """What needs no reading: NumPy arrays over the files, layers stacked; None where the weights must be read."""
        if not self.native or not holds_packed(self.path) or self.checkpoint.stored_dtype != self.kept:
            return None
        return map_packed(self.path)

    @property
    def shapes(self) -> dict[str, Any] | None:
        """Of what `place` will give, where that is known before."""
        return None if self.mapped is None else shapes_of(self._laid(self.mapped))

    def place(self) -> dict[str, Any]:
        """The weights on the device, as `smoljax.nn.packed.pack` lays them out.

        Raises:
          SmoljaxError: as `checkpoint`, or a file has not the content that it was written with.
        """
        if self.mapped is None:
            checkpoint = self.checkpoint if self.checkpoint.params else self._read()
            params = _put(pack(checkpoint.params))
            return stack_layers(params) if self.scan_layers else params
        verify(self.path)
        return _put(self._laid(self.mapped))

    @cached_property
    def pages(self) -> Pages:
        """Those of mapped weights; none where the weights are read."""
        if self.mapped is None:
            return Pages({})
        tied = self.checkpoint.config.tie_embeddings
        return Pages(self.mapped, () if tied else ("embedding/table", "embedding/rows"))

    def _laid(self, stacked: dict[str, Any]) -> dict[str, Any]:
        return stacked if self.scan_layers else unstack_layers(stacked)

    def _read(self) -> Checkpoint:
        rounds = self.wanted in get_args(Quantisation)
        wanted = "float32" if rounds else self.wanted or self.dtype
        found = load_checkpoint(self.path, wanted, resolve=self.resolve, quantised=True)
        if found.quantised is not None and self.wanted not in (None, found.quantised):
            raise SmoljaxError(
                f"{self.path}: its weights are {found.quantised}, which cannot be taken to {self.wanted}"
            )
        return quantised(found, self.wanted if rounds and found.quantised is None else None)  # type: ignore[arg-type]


def _put(params: dict[str, Any]) -> dict[str, Any]:
    # Aliasing keeps mapped weights where they are: no copy on a CPU.
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=True), params)
