"""The real programs of a run, compiled for a topology that is only described; no such chip is needed.

`libtpu` (extra `tpu`) holds the compiler. Nothing is allocated: parameters, optimizer state and batch are shapes with
shardings.
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.data.packing import RowShape, batch_arrays
from smoljax.errors import SmoljaxError, UsageError
from smoljax.ops.partition import Partition
from smoljax.plan.chips import Topology, read_topology
from smoljax.training.config import Distill, TrainConfig
from smoljax.training.setup import make_state, plain_model
from smoljax.training.sharding import batch_sharding, make_mesh, rules_of
from smoljax.training.step import jit_step

GROUPS = ("params", "opt_state", "ema")


@dataclass(frozen=True)
class Memory:
    """Bytes of a chip.

    Attributes:
      parameters, optimizer, ema, batch: the program's arguments.
      temporaries: everything that it allocates besides: gradients, activations, gathered parameters. Some of it takes
        the place of donated arguments, so that kinds add up to more than the peak.
      code: the program itself.
      available: what the compiler may use of the chip's memory.
      peak: the most that is in use at one time, as the compiler says; NaN where it gave up, or where it counts what
        lies in the host's memory with what lies in the chip's.
      host: of the host's memory, for each of its chips (remat "offload").
    """

    parameters: float
    optimizer: float
    ema: float
    batch: float
    temporaries: float
    code: float
    available: float
    peak: float = math.nan
    host: float = 0.0

    @property
    def total(self) -> float:
        """What the chip must have: the peak, or where that is not known all kinds together."""
        if not math.isnan(self.peak):
            return self.peak
        return self.parameters + self.optimizer + self.ema + self.batch + self.temporaries + self.code


@dataclass(frozen=True)
class Compiled:
    """One program for one topology.

    Attributes:
      topology: the slice.
      mesh: axis → size.
      coords: each device's chip in the slice, in the mesh's order.
      memory: of a chip.
      text: the optimised HLO; None where the compiler gave up for want of memory.
      flops: the compiler's own count for a chip; the body of a loop counts once.
      seconds: that compiling took.
      refusal: what the compiler said where it gave up.
    """

    topology: Topology
    mesh: Mapping[str, int]
    coords: tuple[tuple[int, ...], ...]
    memory: Memory
    text: str | None
    flops: float
    seconds: float
    refusal: str = ""

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        return self.text is not None

    def save(self, path: Path) -> None:
        """Writes it as compressed JSON: a change of the predictor then needs no compiler."""
        plain = dataclasses.asdict(self) | {"topology": self.topology.name}
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        with gzip.open(scratch, "wt") as file:
            json.dump(plain, file)
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Compiled":
        """Reads what `save` wrote."""
        with gzip.open(path, "rt") as file:
            plain = json.load(file)
        coords = tuple(tuple(place) for place in plain.pop("coords"))
        topology, memory = read_topology(plain.pop("topology")), Memory(**plain.pop("memory"))
        return cls(**plain, topology=topology, coords=coords, memory=memory)


def check_compiler() -> None:
    """Raises SmoljaxError unless TPU programs can be compiled here."""
    if importlib.util.find_spec("libtpu") is None:
        raise SmoljaxError("compiling for a TPU needs libtpu: pip install 'smoljax[tpu]'")


def describe(topology: Topology) -> list[Any]:
    """The devices of a topology.

    Raises:
      UsageError: the compiler knows no such slice.
    """
    check_compiler()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # no chip is touched, so several may compile at a time
    from jax.experimental import topologies

    with _quiet():
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
        except Exception as error:
            raise UsageError(f"topology {topology.name}: the compiler says: {_first_line(error)}") from error


def compile_step(config: TrainConfig, topology: Topology, devices: list[Any] | None = None) -> Compiled:
    """The training step of a config on a topology.

    Args:
      config: the run; its mesh is laid over the topology's chips.
      topology: the slice.
      devices: of `describe`, if they are there already.

    Raises:
      UsageError: mesh or batch do not fit the chips; the run has a teacher.
      SmoljaxError: the compiler is missing, or fails for another reason than memory.
    """
    if any(isinstance(objective, Distill) for objective in config.objectives):
        raise UsageError("plan: a run with a teacher cannot be planned; leave the distill objective out")
    devices = describe(topology) if devices is None else devices
    mesh = dataclasses.replace(config.mesh, host_devices=None)
    partition = rules_of(mesh).partition(make_mesh(mesh, devices))
    start = plain_model(config.model)
    optimizer, _, like = make_state(config, start, None, partition)
    batch = batch_shapes(config, start.config, partition)
    step = jit_step(config, start.config, optimizer, like, None, partition)
    parts = {name: bytes_of(getattr(like, name)) for name in GROUPS}
    sizes = {"parameters": parts["params"], "optimizer": parts["opt_state"], "ema": parts["ema"]}
    return compile_program(step, (like, batch, None), topology, partition, sizes | {"batch": bytes_of(batch)})


def compile_program(
    function: Any, args: tuple[Any, ...], topology: Topology, partition: Partition, sizes: Mapping[str, float]
) -> Compiled:
    """A jitted function on shapes with shardings; `sizes` are the bytes a chip of its arguments, by kind."""
    started = time.perf_counter()
    mesh = dict(partition.mesh.shape)
    coords = tuple(tuple(device.coords) for device in partition.mesh.devices.flatten())
    with _quiet():
        lowered = function.lower(*args)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise SmoljaxError(f"{topology.name}: the compiler fails: {_first_line(error)}") from error
            memory = _refused(str(error), sizes, topology)
            seconds = time.perf_counter() - started
            return Compiled(topology, mesh, coords, memory, None, math.nan, seconds, str(error)[:2000])
        found, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
        text = compiled.as_text()
    memory = Memory(
        **{"ema": 0.0, "optimizer": 0.0, **sizes},
        temporaries=float(found.temp_size_in_bytes),
        code=float(found.generated_code_size_in_bytes),
        available=_available(topology),
        peak=math.nan if found.host_temp_size_in_bytes else float(found.peak_memory_in_bytes),
        host=float(found.host_temp_size_in_bytes),
    )
    seconds = time.perf_counter() - started
    return Compiled(topology, mesh, coords, memory, text, float(cost.get("flops", math.nan)), seconds)


def batch_shapes(config: TrainConfig, model: SmolVLMConfig, partition: Partition) -> dict[str, Any]:
    """The arrays of a batch of `smoljax.data`, as shapes with shardings.

    Raises:
      UsageError: the rows do not divide among the chips.
    """
    data = config.data
    ways = partition.ways("batch")
    if data.batch_size % ways:
        raise UsageError(f"a batch of {data.batch_size} rows does not divide among {ways} chips; see --batch")
    size = model.vision.image_size if model.vision else 0
    shape = RowShape(
        data.sequence_length, data.max_tiles if size else 0, data.pairs, size, 0, branches=data.branches
    )
    row = batch_arrays([[]], shape)
    sharding = batch_sharding(partition)

    def whole(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *leaf.shape[1:]), leaf.dtype, sharding=sharding)

    return jax.tree.map(whole, row)


def bytes_of(tree: Any) -> float:
    """What a chip holds of arrays with shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _available(topology: Topology) -> float:
    """What programs may use: the compiler keeps a sixty-fourth for itself."""
    return topology.chip.hbm_bytes * 63 / 64


def _refused(text: str, sizes: Mapping[str, float], topology: Topology) -> Memory:
    """The memory that the compiler asked for in vain."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

    def amount(pattern: str) -> float | None:
        found = re.search(pattern, text)
        return float(found.group(1)) * units.get(found.group(2), 1) if found else None

    arguments = sum(sizes.values())
    temporaries = amount(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")
    if temporaries is None:
        used = amount(r"Used ([\d.]+)([KMGT]?) of")
        temporaries = math.nan if used is None else max(used - arguments, 0.0)
    available = amount(r"available HBM \(([\d.]+)([KMGT]?)\)") or _available(topology)
    return Memory(
        **{"ema": 0.0, "optimizer": 0.0, **sizes}, temporaries=temporaries, code=0.0, available=available
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """libtpu writes to standard error what has no meaning without a TPU."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    saved = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(silent)
