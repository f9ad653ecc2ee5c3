"""How a run lies on its devices: the mesh, and which logical axis each of the mesh's axes splits.

Parameters, optimizer moments, batches and activations have names for their dimensions (`smoljax.nn.logical`,
`smoljax.ops.partition`); `Rules` says what the names mean. The mesh has four axes: "data" repeats parameters and splits
the batch, "fsdp" splits both, "tensor" splits heads, MLP and vocabulary, "sequence" splits the tokens of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError
from smoljax.nn.logical import logical_axes, units
from smoljax.ops.partition import Partition
from smoljax.training.config import MeshConfig
from smoljax.training.optimizer import path_of

AXES = ("data", "fsdp", "sequence", "tensor")  # neighbours in the last one have the fastest links

# What one array holds together; no mesh axis may split two of its dimensions.
_ARRAYS = (
    ("embed", "heads"),
    ("embed", "kv_heads"),
    ("embed", "vision_heads"),
    ("embed", "mlp"),
    ("vocab", "embed"),
    ("shuffled", "embed"),
    ("shuffled", "mlp"),
    ("pixels", "embed"),
    ("patches", "embed"),
    ("batch", "residual"),
    ("batch", "sequence", "heads"),
    ("batch", "sequence", "mlp"),
    ("batch", "sequence", "vocab"),
    ("tiles", "vision_heads"),
    ("tiles", "mlp"),
    ("tokens", "vocab"),
)


@dataclass(frozen=True)
class Rules:
    """Logical axis → the mesh axes that split it, () for none.

    Attributes:
      batch: rows.
      tiles: pictures' tiles, all rows' together.
      sequence: tokens of a row.
      tokens: all rows' tokens in one line.
      residual: tokens of a row between attention and MLP, where no matrix is split (Korthikanti et al. 2022, sequence
        parallelism: what is kept for the backward pass there is split too).
      embed: the width of the model, in parameters alone.
      heads, kv_heads, vision_heads: attention heads; whole heads only.
      mlp: hidden numbers of MLPs.
      vocab: rows of the word table.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    tiles: tuple[str, ...] = ("data", "fsdp", "sequence")
    sequence: tuple[str, ...] = ("sequence",)
    tokens: tuple[str, ...] = ("data", "fsdp", "sequence")
    residual: tuple[str, ...] = ("sequence",)
    embed: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    kv_heads: tuple[str, ...] = ()
    vision_heads: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown mesh axis, and where one would split two dimensions of one array."""
        known = vars(self)
        for name, axes in known.items():
            if unknown := set(axes) - set(AXES):
                raise UsageError(f"rules: {name} is split over {unknown}; a mesh has {', '.join(AXES)}")
        for array in _ARRAYS:
            axes = [axis for name in array for axis in known.get(name, ())]
            if twice := {axis for axis in axes if axes.count(axis) > 1}:
                raise UsageError(f"rules: {', '.join(twice)} would split two of {array}, which one array has")

    def partition(self, mesh: Mesh | AbstractMesh) -> Partition:
        """These rules on a mesh."""
        return Partition(mesh, dict(vars(self)))


PRESETS = {
    "dp": Rules(),
    "fsdp": Rules(embed=("fsdp",)),
    "fsdp_tp": Rules(
        residual=("sequence", "tensor"),
        embed=("fsdp",),
        heads=("tensor",),
        kv_heads=("tensor",),
        vision_heads=("tensor",),
        mlp=("tensor",),
        vocab=("tensor",),
    ),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, neighbours in it near each other.

    Args:
      config: its axes.
      devices: those of a described topology; None: all there are.

    Raises:
      UsageError: the numbers do not multiply to the devices there are, or the rules leave an axis without use.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    fixed = {"fsdp": config.fsdp, "sequence": config.sequence, "tensor": config.tensor}
    if min(fixed.values()) < 1 or config.data == 0 or config.data < -1:
        raise UsageError("mesh: all axes must be at least 1 (data -1: the rest)")
    rest = math.prod(fixed.values())
    shape = {"data": count // rest if config.data == -1 else config.data, **fixed}
    if math.prod(shape.values()) != count:
        given = {"data": config.data, **fixed}
        told = " × ".join(f"{name} {ways}" for name, ways in given.items() if ways > (name != "data"))
        raise UsageError(f"mesh: {told} does not make the {count} device{'s' * (count > 1)} there are")
    rules = rules_of(config)
    used = {axis for axes in vars(rules).values() for axis in axes}
    if idle := [name for name, ways in shape.items() if ways > 1 and name not in used]:
        raise UsageError(f"mesh: rules {config.rules!r} split nothing over {', '.join(idle)}; leave it at 1")
    sizes = tuple(shape[axis] for axis in AXES)
    if devices[0].platform == "cpu":
        return Mesh(np.array(devices).reshape(sizes), AXES)
    from jax.experimental import mesh_utils

    return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES)


def check_hosts(partition: Partition) -> None:
    """Raises UsageError where two hosts would have to read the same rows, or not all as many."""
    ways = partition.ways("batch")
    places = batch_sharding(partition).devices_indices_map((ways,))
    owners: dict[int, set[int]] = {}
    for device, rows in places.items():
        owners.setdefault(rows[0].start or 0, set()).add(device.process_index)
    if any(len(hosts) > 1 for hosts in owners.values()) or ways % jax.process_count():
        raise UsageError(
            f"mesh: the batch is split {ways} ways, and some of its rows would lie on several of the "
            f"{jax.process_count()} hosts; make sequence × tensor smaller, so that it lies within a host"
        )


def rules_of(config: MeshConfig) -> Rules:
    """The preset that the config names."""
    return PRESETS[config.rules]


def spec_of(path: str, shape: tuple[int, ...], partition: Partition, config: SmolVLMConfig) -> PartitionSpec:
    """How one parameter is split; a dimension whose pieces do not divide among the devices stays whole."""
    whole = units(config)
    names = [
        None if name and whole.get(name, 0) % partition.ways(name) else name
        for name in logical_axes(path, len(shape))
    ]
    return partition.spec(tuple(names), shape)


def state_shardings(state: Any, partition: Partition, config: SmolVLMConfig) -> Any:
    """A tree like `state` of NamedShardings; optimizer moments are split as their parameters are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            partition.mesh, spec_of(path_of(path), leaf.shape, partition, config)
        ),
        state,
    )


def batch_sharding(partition: Partition) -> NamedSharding:
    """Rows over all axes that split the batch."""
    return NamedSharding(partition.mesh, PartitionSpec(partition.axes["batch"]))


def place_batch(batch: Any, sharding: NamedSharding) -> Any:
    """This host's rows of NumPy arrays → global arrays.

    Raises:
      UsageError: the batch does not divide by the devices.
    """
    axes = sharding.spec[0] or ()
    ways = max(1, math.prod(sharding.mesh.shape[axis] for axis in axes) // jax.process_count())

    def place(leaf: np.ndarray) -> jax.Array:
        if leaf.shape[0] % ways:
            raise UsageError(f"a batch of {leaf.shape[0]} rows does not divide among {ways} devices")
        whole = (leaf.shape[0] * jax.process_count(), *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, whole)

    return jax.tree.map(place, batch)
