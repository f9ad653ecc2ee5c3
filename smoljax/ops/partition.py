"""Where activations lie on a mesh of devices: named axes, and a constraint that is nothing outside a mesh.

The compiler finds a placement of every intermediate by itself, but from sharded parameters it guesses: a table that is
split along its columns makes it split activations along their columns too, and every device then computes every row.
So the model says at a few points what it means, in names (`constrain(x, "batch", "sequence", None)`); whoever knows the
mesh says what the names stand for (`partitioned`). Without that the model is the plain function it always was.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


@dataclass(frozen=True)
class Partition:
    """A mesh, and which of its axes each name is split over.

    Attributes:
      mesh: of devices, real ones or those of a described topology; an abstract one where only `spec` is asked.
      axes: name → mesh axes; a name that is missing is not split.
    """

    mesh: Any
    axes: Mapping[str, tuple[str, ...]]

    def ways(self, name: str) -> int:
        """Into how many parts a name is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes.get(name, ()))

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """How an array whose dimensions have these names is split; what does not divide stays whole."""
        parts = [
            self.axes[name] if name and self.ways(name) > 1 and not size % self.ways(name) else None
            for name, size in zip(names, shape, strict=True)
        ]
        return PartitionSpec(*parts)

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu", "tpu"."""
        return self.mesh.devices.flat[0].platform


_ACTIVE: ContextVar[Partition | None] = ContextVar("partition", default=None)
_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def partitioned(partition: Partition | None) -> Iterator[None]:
    """What is traced inside is placed as `partition` says; None: not at all."""
    before = _ACTIVE.set(partition)
    try:
        yield
    finally:
        _ACTIVE.reset(before)


def active_partition() -> Partition | None:
    """The one that is in force, None outside of `partitioned`."""
    return _ACTIVE.get()


def constrain(x: Any, *names: str | None) -> Any:
    """The same array, placed by the names of its dimensions; None is whole on every device.

    Args:
      x: any array, jax's or NumPy's.
      *names: one for each dimension (`smoljax.training.sharding.Rules` lists them); what is left out is None.
    """
    partition = _ACTIVE.get()
    if partition is None or partition.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(partition.mesh, partition.spec((*names, *(None,) * (x.ndim - len(names))), x.shape))
    )


def ways(name: str) -> int:
    """Into how many parts a name is split, 1 outside a mesh."""
    partition = _ACTIVE.get()
    return 1 if partition is None else partition.ways(name)


@contextmanager
def traced_for(name: str) -> Iterator[None]:
    """What is traced inside is for this platform ("cpu", "gpu", "tpu"), whatever this machine has."""
    before = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(before)


def platform() -> str:
    """The platform that is traced for."""
    partition = _ACTIVE.get()
    return _PLATFORM.get() or (jax.default_backend() if partition is None else partition.platform)
