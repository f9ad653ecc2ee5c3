"""What stands before the first step: the model and its processor, the teacher, the state and its placement."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smoljax.config import SmolVLMConfig
from smoljax.convert.convert import load_checkpoint, open_checkpoint
from smoljax.convert.pages import give_back_freed
from smoljax.errors import SmoljaxError, UsageError
from smoljax.models import check_processor, processor_of, resolve
from smoljax.nn.adapt import adapt, adapted
from smoljax.nn.smolvlm import init_params
from smoljax.nn.stacking import stack_layers, unstack_layers
from smoljax.ops.partition import Partition
from smoljax.processing.processor import Processor
from smoljax.training.config import Distill, ModelConfig, TrainConfig
from smoljax.training.fresh_rows import with_fresh_rows
from smoljax.training.objectives.table import init_objectives
from smoljax.training.optimizer import make_optimizer
from smoljax.training.sharding import state_shardings
from smoljax.training.step import TrainState


@dataclass(frozen=True)
class Start:
    """A model before training.

    Attributes:
      config: architecture and how it is executed.
      processor: pictures, prompts and tokens.
      params: NumPy arrays to start from; None for fresh ones, made on the devices.
    """

    config: SmolVLMConfig
    processor: Processor
    params: Any


def open_model(model: ModelConfig, *, weights: bool = True, seed: int = 0) -> Start:
    """The model a run starts from.

    Args:
      model: see there.
      weights: False leaves a checkpoint's weights out (a run that resumes has its own).
      seed: of what is made fresh.

    Raises:
      UsageError: no such model.
      SmoljaxError: a checkpoint or a processor that is broken, without a tokenizer, or another architecture's.
    """
    compute = _compute(model)
    if model.start is None:
        assert model.architecture is not None
        assert model.processor is not None
        processor = Processor.from_folder(model.processor)
        check_processor(model.architecture, processor, model.processor)
        fresh = model.architecture.with_compute(**compute)
        if model.sharing is not None:
            fresh = dataclasses.replace(fresh, sharing=model.sharing)
        return Start(fresh, _processor(processor, fresh, model), None)
    path = resolve(model.start)
    checkpoint = load_checkpoint(path, "float32", resolve=resolve)
    if "tokenizer.json" not in checkpoint.files:
        raise SmoljaxError(f"{model.start}: has no tokenizer.json, which training needs; copy it there")
    processor = processor_of(checkpoint, path)
    config = checkpoint.config.with_compute(**compute)
    changes = {"sharing": model.sharing, "tie": model.tie, "scale_factor": model.scale_factor}
    changed = adapted(config, **changes)
    processor = _processor(processor, changed, model)
    if not weights:
        return Start(changed, processor, None)
    params = stack_layers(checkpoint.params) if model.scan_layers else unstack_layers(checkpoint.params)
    if model.fresh_rows is not None:
        tables = {
            name: with_fresh_rows(np.asarray(leaf), model.fresh_rows, seed)[0] if leaf.ndim == 2 else leaf
            for name, leaf in params["embedding"].items()
        }
        params = {**params, "embedding": tables}
    if changed != config:
        params = adapt(config, params, **changes, seed=seed)[1]
    return Start(changed, processor, jax.tree.map(np.asarray, params))


def plain_model(model: ModelConfig) -> Start:
    """The architecture that a run trains, without reading weights or a processor: enough to compile its step."""
    compute = _compute(model)
    if model.architecture is not None:
        config = model.architecture.with_compute(**compute)
        config = config if model.sharing is None else dataclasses.replace(config, sharing=model.sharing)
    else:
        assert model.start is not None
        config = open_checkpoint(resolve(model.start), resolve=resolve).config.with_compute(**compute)
        config = adapted(config, sharing=model.sharing, tie=model.tie, scale_factor=model.scale_factor)
    return Start(config, cast(Processor, None), None)


def _compute(model: ModelConfig) -> dict[str, Any]:
    names = ("dtype", "scan_layers", "remat", "attention")
    return {name: getattr(model, name) for name in names}


def _processor(processor: Processor, config: SmolVLMConfig, model: ModelConfig) -> Processor:
    """The processor with what the run changes of it."""
    if config.image_seq_len == processor.config.image_seq_len and model.tile_tokens is None:
        return processor
    return processor.with_settings(image_seq_len=config.image_seq_len, tile_tokens=model.tile_tokens)


def open_teacher(config: TrainConfig, student: Start) -> tuple[SmolVLMConfig, Any] | None:
    """The teacher's config and parameters, None where no objective asks for one.

    Raises:
      UsageError: teacher and student do not read the same tokens and pictures.
    """
    found = [objective for objective in config.objectives if isinstance(objective, Distill)]
    if not found:
        return None
    name = found[0].teacher
    own = config.model
    teacher = open_model(
        ModelConfig(start=name, dtype=own.dtype, scan_layers=own.scan_layers, attention=own.attention)
    )
    ours, theirs = student.processor.files, teacher.processor.files
    same = ours["tokenizer.json"] == theirs["tokenizer.json"]
    if not same or student.config.image_seq_len != teacher.config.image_seq_len:
        raise UsageError(f"teacher {name}: needs the student's tokenizer.json and image tokens a tile")
    if student.processor.config.image != teacher.processor.config.image:
        raise UsageError(f"teacher {name}: needs the student's picture settings (preprocessor_config.json)")
    if student.config.text.vocab_size != teacher.config.text.vocab_size:
        raise UsageError(
            f"teacher {name}: its vocabulary is {teacher.config.text.vocab_size}, not the student's"
        )
    return teacher.config, teacher.params


def make_state(
    config: TrainConfig, start: Start, teacher: SmolVLMConfig | None, partition: Partition
) -> tuple[Any, Any, Any]:
    """The optimizer, a function that makes the first state on the mesh, and the state's shapes with their shardings.

    Parameters and optimizer state are created already sharded. Weights to start from are placed one array at a time,
    each let go when it is there and all before there are moments: a caller that lets go of `start` before it calls the
    function (once) never holds the weights beside the whole state.
    """
    model_key, objective_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    model, keep_ema = start.config, config.optimizer.ema > 0

    def own_of() -> dict[str, Any]:
        return init_objectives(config.objectives, model, objective_key, teacher)

    def params_of(given: Any) -> dict[str, Any]:
        params = init_params(model, model_key) if given is None else given
        own = own_of()
        return {**params, "objectives": own} if own else dict(params)

    def rest_of(params: Any) -> TrainState:
        return TrainState(
            step=jax.numpy.zeros((), "int32"),
            params=None,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(lambda leaf: leaf + 0, params) if keep_ema else None,
            rng=jax.random.key_data(noise_key),
        )

    shapes = jax.eval_shape(params_of, start.params)
    optimizer = make_optimizer(config.optimizer, config.steps, shapes)
    rest = jax.eval_shape(rest_of, shapes)
    splits = state_shardings(rest.replace(params=shapes), partition, model)
    waiting, tree = jax.tree.flatten(start.params)
    fresh = start.params is None

    def first() -> TrainState:
        if fresh:
            params = jax.jit(partial(params_of, None), out_shardings=splits.params)()
        else:
            places = {key: place for key, place in splits.params.items() if key != "objectives"}
            placed = []
            for place in jax.tree.leaves(places):  # the first that waits goes; nothing holds it any more
                placed.append(jax.block_until_ready(jax.jit(_same, out_shardings=place)(waiting.pop(0))))
            params = jax.tree.unflatten(tree, placed)
            if "objectives" in splits.params:
                params["objectives"] = jax.jit(own_of, out_shardings=splits.params["objectives"])()
        give_back_freed()
        made = jax.jit(rest_of, out_shardings=splits.replace(params=None))(params)
        return made.replace(params=params)

    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        rest.replace(params=shapes),
        splits,
    )
    return optimizer, first, like


def _same(leaf: Any) -> Any:
    return leaf


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Arrays repeated on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def export_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The model's parameters as NumPy arrays, unstacked, without the objectives' own.

    Of several hosts all must call it; what the first gets is whole, the others get nothing.
    """
    own = {key: value for key, value in params.items() if key != "objectives"}
    whole = jax.tree.map(_whole, own)
    return unstack_layers(whole) if jax.process_index() == 0 else {}


def _whole(leaf: jax.Array) -> np.ndarray | None:
    """An array that several hosts may hold parts of; one at a time, so that a host's memory holds one besides."""
    if jax.process_count() == 1:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(found) if jax.process_index() == 0 else None
