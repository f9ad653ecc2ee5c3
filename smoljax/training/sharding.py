"""Data-parallel and fully sharded training by logical axis names.

Every parameter has a tuple of logical axes; a `Rules` table says which mesh axis each of them is split over. The
mesh has two axes: "data" repeats parameters and splits the batch, "fsdp" splits both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smoljax.errors import UsageError
from smoljax.training.config import MeshConfig
from smoljax.training.optimizer import path_of

AXES = ("data", "fsdp")

# Longest first: the first pattern that matches a path's end names the axes of its last dimensions.
_LOGICAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"attention/(q|k|v)/kernel$", ("embed", "heads")),
    (r"attention/out/kernel$", ("heads", "embed")),
    (r"mlp/(gate|up|fc1)/kernel$", ("embed", "mlp")),
    (r"mlp/(down|fc2)/kernel$", ("mlp", "embed")),
    (r"embedding/(table|head)$", ("vocab", "embed")),
    (r"connector/proj/kernel$", ("shuffled", "embed")),
    (r"patch_embedding/kernel$", ("pixels", "embed")),
    (r"position_embedding$", ("patches", "embed")),
)


@dataclass(frozen=True)
class Rules:
    """Logical axis → mesh axis; names that are missing stay whole."""

    axes: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=lambda: MappingProxyType({"batch": AXES, "embed": "fsdp"})
    )


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      UsageError: the numbers do not multiply to the devices there are.
    """
    devices = jax.devices()
    count = len(devices)
    if config.fsdp < 1 or config.data == 0 or config.data < -1:
        raise UsageError(
            f"mesh: data {config.data} and fsdp {config.fsdp} must be at least 1 (data -1: the rest)"
        )
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count:
        raise UsageError(
            f"mesh: data {config.data} × fsdp {config.fsdp} does not make the {count} devices of this machine"
        )
    return Mesh(np.array(devices).reshape(data, config.fsdp), AXES)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """A parameter's logical axes; leading dimensions (stacked layers) and unknown ones are None."""
    for pattern, axes in _LOGICAL:
        if re.search(pattern, path) and ndim >= len(axes):
            return (None,) * (ndim - len(axes)) + axes
    return (None,) * ndim


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """How one array is split; a dimension that the mesh axis does not divide stays whole."""
    parts: list[Any] = []
    for name, size in zip(logical_axes(path, len(shape)), shape, strict=True):
        axis = rules.axes.get(name) if name else None
        ways = int(np.prod([mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())]))
        parts.append(axis if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*parts)


def state_shardings(state: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """A tree like `state` of NamedShardings; optimizer moments are split as their parameters are."""
    rules = rules or Rules()
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_of(path), leaf.shape, mesh, rules)), state
    )


def batch_sharding(mesh: Mesh, rules: Rules | None = None) -> NamedSharding:
    """Rows over all axes that split the batch."""
    return NamedSharding(mesh, PartitionSpec((rules or Rules()).axes["batch"]))


def place_batch(batch: Any, sharding: NamedSharding) -> Any:
    """This host's rows of NumPy arrays → global arrays.

    Raises:
      UsageError: the batch does not divide by the devices.
    """
    ways = int(np.prod([sharding.mesh.shape[axis] for axis in AXES])) // jax.process_count()

    def place(leaf: np.ndarray) -> jax.Array:
        if leaf.shape[0] % ways:
            raise UsageError(f"a batch of {leaf.shape[0]} rows does not divide among {ways} devices")
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(place, batch)
