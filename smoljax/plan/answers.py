"""The plan of answering: the three programs of generation, compiled for a described slice and read."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError
from smoljax.generation import programs
from smoljax.generation.options import Sampling
from smoljax.nn.cache import Int8Slots
from smoljax.nn.smolvlm import abstract_params, picture_params
from smoljax.ops.partition import Partition, partitioned
from smoljax.plan.chips import Topology
from smoljax.plan.compile import bytes_of, compile_program, describe
from smoljax.plan.plan import report
from smoljax.training.config import MeshConfig
from smoljax.training.flops import forward_flops
from smoljax.training.sharding import make_mesh, rules_of, state_shardings


@dataclasses.dataclass(frozen=True)
class Load:
    """What is answered at a time.

    Attributes:
      rows: questions, all chips together.
      prompt: tokens of each, those of its picture included.
      new: tokens of an answer, at most.
      tiles: of a question's picture; 0 for none.
    """

    rows: int
    prompt: int = 1024
    new: int = 256
    tiles: int = 1


def plan_answers(
    config: SmolVLMConfig, mesh: MeshConfig, topology: Topology, load: Load, devices: list[Any] | None = None
) -> dict[str, Any]:
    """Compiles the patch encoder, the prefill and one step of decoding for a slice, and reads them.

    Parameters are in the compute dtype and split as `mesh` says; rows are split over `data` and `fsdp`, key-value heads
    of the cache over `tensor`.

    Args:
      config: the model, with its compute settings.
      mesh: laid over the topology's chips.
      topology: the slice.
      load: rows and lengths.
      devices: of `smoljax.plan.compile.describe`, if they are there already.

    Returns:
      `vision` (absent without tiles), `prefill`, `decode`: as `smoljax.plan.plan.report`, of one run of each program,
      for `decode` of one token; and `first_token_s`, `tokens_per_s` of all rows together while they decode, None where
      a program does not fit.

    Raises:
      UsageError: mesh or rows do not fit the chips; tiles for a model without a patch encoder.
      SmoljaxError: the compiler is missing, or fails for another reason than memory.
    """
    if load.tiles and config.vision is None:
        raise UsageError("plan: this model reads no pictures; --tiles 0")
    devices = describe(topology) if devices is None else devices
    partition = rules_of(mesh).partition(make_mesh(dataclasses.replace(mesh, host_devices=None), devices))
    if load.rows % partition.ways("batch"):
        raise UsageError(
            f"{load.rows} questions do not divide among {partition.ways('batch')} chips; see --batch"
        )
    params = _placed_params(config, partition)
    found: dict[str, Any] = {"topology": topology.name, "chips": topology.chips, **dataclasses.asdict(load)}
    shapes = {
        "input_ids": _rows(partition, (load.rows, load.prompt), jnp.int32),
        "attention_mask": _rows(partition, (load.rows, load.prompt), jnp.bool_),
    }
    if load.tiles:
        assert config.vision is not None
        size = config.vision.image_size
        pixels = _rows(partition, (load.rows * load.tiles, 3, size, size), jnp.float32)
        found["vision"] = _program(
            partial(programs.encode_tiles, config),
            (picture_params(config, params), pixels, None),
            topology,
            partition,
            forward_flops(config, load.rows, 0, load.tiles, decoder=False),
        )
        features = (load.rows, load.tiles, config.image_seq_len, config.text.hidden_size)
        shapes["image_features"] = _rows(partition, features, config.compute.dtype)
        shapes["tile_mask"] = _rows(partition, features[:2], jnp.bool_)
    controls = jax.eval_shape(lambda: programs.make_controls(config, Sampling(), (0,), 0))
    prefill = partial(programs.prefill, config, False, False, load.new, 0)
    head = 2 * config.text.hidden_size * config.text.vocab_size
    found["prefill"] = _program(
        prefill,
        (params, shapes, controls),
        topology,
        partition,
        # Scores are computed at the last position alone.
        forward_flops(config, load.rows, load.prompt, 0) - head * load.rows * (load.prompt - 1),
    )
    with partitioned(partition):
        state = _placed_state(jax.eval_shape(prefill, params, shapes, controls), partition)
    text = config.text
    found["decode"] = _program(
        partial(programs.decode, config, False, False),
        (params, state, jax.ShapeDtypeStruct((), jnp.int32), controls),
        topology,
        partition,
        forward_flops(config, load.rows, 1, 0)
        + 4 * load.rows * text.num_layers * (load.prompt + load.new) * text.num_heads * text.head_dim,
        donate=(1,),
    )
    times = [found[name]["predicted_step_s"] for name in ("vision", "prefill") if name in found]
    step = found["decode"]["predicted_step_s"]
    found["fits"] = all(found[name]["fits"] for name in ("vision", "prefill", "decode") if name in found)
    found["first_token_s"] = None if None in times else sum(times)
    found["tokens_per_s"] = step and load.rows / step
    return found


def _program(
    function: Any,
    args: tuple[Any, ...],
    topology: Topology,
    partition: Partition,
    flops: float,
    donate: tuple[int, ...] = (),
) -> dict[str, Any]:
    """One program, compiled and read."""

    def placed(*arrays: Any) -> Any:
        with partitioned(partition):
            return function(*arrays)

    sizes = {"parameters": bytes_of(args[0]), "batch": bytes_of(args[1])}
    return report(
        compile_program(jax.jit(placed, donate_argnums=donate), args, topology, partition, sizes), flops
    )


def _placed_params(config: SmolVLMConfig, partition: Partition) -> Any:
    shapes = abstract_params(config)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, config.compute.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, partition, config),
    )


def _rows(partition: Partition, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    spec = partition.spec(("batch", *(None,) * (len(shape) - 1)), shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(partition.mesh, spec))


def _placed_state(state: programs.DecodeState, partition: Partition) -> programs.DecodeState:
    """Rows and key-value heads of what the decode loop carries, split."""

    names: dict[int, tuple[str | None, ...]] = {
        0: (),
        1: ("batch",),
        2: ("batch", None),
        4: ("batch", None, "kv_heads", None),
        5: (None, "batch", None, "kv_heads", None),
    }

    def split(leaf: Any, names: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
        spec = partition.spec(names, leaf.shape) if names else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(partition.mesh, spec))

    def place(leaf: Any) -> Any:
        if isinstance(leaf, Int8Slots):
            own = names[leaf.values.ndim]
            return Int8Slots(split(leaf.values, own), split(leaf.scale, own[:-1]))
        return split(leaf, names[leaf.ndim])

    return jax.tree.map(place, state, is_leaf=lambda leaf: isinstance(leaf, Int8Slots))
