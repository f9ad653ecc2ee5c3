"""The plan of a run: does it fit, how long is a step, what is spoken over the links."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from smoljax.errors import UsageError
from smoljax.plan.chips import Topology
from smoljax.plan.compile import Compiled, Memory, compile_step, describe
from smoljax.plan.hlo import Instruction, Module, callee, element, parse, trip_count
from smoljax.plan.network import Network
from smoljax.plan.predictor import RATES, error
from smoljax.plan.schedule import Play, Player, Rates, exchanges_table
from smoljax.training.config import TrainConfig
from smoljax.training.flops import train_flops
from smoljax.training.objectives.table import needs_decoder
from smoljax.training.setup import plain_model


def plan_training(
    config: TrainConfig, topology: Topology, devices: list[Any] | None = None, keep_hlo: Path | None = None
) -> dict[str, Any]:
    """Compiles the training step of a config for a topology and reads the program.

    Args:
      config: the run.
      topology: the slice.
      devices: of `smoljax.plan.compile.describe`, if they are there already.
      keep_hlo: where to write the compiled program.

    Returns:
      See `report`; `tokens_per_s` and `tiles_per_s` besides, padding included.

    Raises:
      UsageError, SmoljaxError: as `compile_step`.
    """
    compiled = compile_step(config, topology, describe(topology) if devices is None else devices)
    if keep_hlo is not None and compiled.text is not None:
        keep_hlo.write_text(compiled.text)
    return training_report(config, compiled)


def training_report(config: TrainConfig, compiled: Compiled) -> dict[str, Any]:
    """What `plan_training` returns, of a step that is compiled already."""
    model, data = plain_model(config.model).config, config.data
    flops = train_flops(
        model, data.batch_size, data.sequence_length, data.max_tiles, needs_decoder(config.objectives)
    )
    found = report(compiled, flops)
    step = found["predicted_step_s"]
    return found | {
        "batch": data.batch_size,
        "sequence_length": data.sequence_length,
        "tiles": data.max_tiles,
        "remat": config.model.remat,
        "tokens_per_s": step and data.batch_size * data.sequence_length / step,
        "tiles_per_s": step and data.batch_size * data.max_tiles / step,
    }


def report(compiled: Compiled, model_flops: float, rates: Rates = RATES) -> dict[str, Any]:
    """What a compiled program says of itself, as plain numbers.

    Args:
      compiled: the program.
      model_flops: of one run of it on all chips, without what is computed twice; for the MFU.
      rates: what part of their published rates chips reach.

    Returns:
      fits, hbm_bytes_per_chip, hbm (bytes by kind), flops (model's, executed on all chips, the compiler's own
      count), predicted_step_s, predicted_s (overlapped: everything that could; as scheduled; one after the other),
      predicted_mfu, predictor_error, collectives, compile_s, mesh, topology. Times are None for a program that
      does not fit.
    """
    topology, memory = compiled.topology, compiled.memory
    module = None if compiled.text is None else parse(compiled.text)
    found: dict[str, Any] = {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": {name: size for name, size in compiled.mesh.items() if size > 1},
        "fits": compiled.fits,
        "hbm_bytes_per_chip": memory.total,
        "hbm": _kinds(memory, module),
        "flops": {"model": model_flops},
        "predicted_step_s": None,
        "predicted_mfu": None,
        "predictor_error": error(),
        "compile_s": round(compiled.seconds, 1),
    }
    if module is None:
        return found | {"refusal": compiled.refusal}
    play = play_of(module, compiled, rates)
    chips = topology.chips
    ideal = model_flops / (chips * topology.chip.flops)
    found["flops"] |= {"executed": play.cost.flops * chips, "compiler": compiled.flops * chips}
    return found | {
        "predicted_step_s": play.seconds,
        "predicted_s": {
            "overlapped": max(play.busy, play.link_seconds, play.host),
            "scheduled": play.seconds,
            "apart": play.busy + play.link_seconds + play.host,
            "products": play.matrix,
            "elements": play.vector,
            "memory": play.memory,
            "links": play.link_seconds,
            "host": play.host,
            "waiting": play.waiting,
        },
        "predicted_mfu": ideal / play.seconds,
        "collectives": exchanges_table(play),
        "loops_of_unknown_length": play.unknown,
    }


def play_of(module: Module, compiled: Compiled, rates: Rates) -> Play:
    """The program played through on its topology's links."""
    network = Network(compiled.topology, compiled.mesh, np.array(compiled.coords))
    return Player(module, network, rates).play()


def _kinds(memory: Memory, module: Module | None) -> dict[str, float]:
    """Bytes of a chip by kind; of the temporaries, what layers keep for the backward pass apart."""
    found = {field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)}
    if module is not None:
        found["activations"] = min(kept_activations(module), memory.temporaries)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def kept_activations(module: Module) -> float:
    """Bytes that scans of layers stack up for the backward pass: of forward loops, the results as long as the loop.

    0 for a program without scanned layers, whose activations cannot be told from other temporaries.
    """
    entry = module.computations[module.entry]
    total = 0.0
    for item in entry.instructions:
        if item.opcode != "while" or "transpose(" in item.origin:
            continue
        times = trip_count(module, entry, item)
        if times is None or times < 2:
            continue
        total += sum(
            shape.bytes
            for place, shape in enumerate(item.shapes)
            if shape.dims and shape.dims[0] == times and shape.in_hbm and _is_written(module, item, place)
        )
    return total


def _is_written(module: Module, loop: Instruction, place: int) -> bool:
    """Whether a loop's body changes an element of its state."""
    body = module.computations[callee(loop, "body")]
    if body.root.opcode != "tuple" or place >= len(body.root.operands):
        return False
    item = body.by_name.get(body.root.operands[place])
    return item is not None and element(item) != place


def smaller(config: TrainConfig, batch: int) -> TrainConfig:
    """The same run with another batch."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))


def advise(config: TrainConfig, topology: Topology, tell: Any = None) -> list[dict[str, Any]]:
    """Plans of a few other settings, the fastest that fits first: mesh, remat policy, batch.

    Args:
      config: the run.
      topology: the slice.
      tell: called with (number done, number of all, plan) after each; a setting that the slice cannot take has
        "refused" in place of a plan, and is left out of what is returned.
    """
    devices, chips = describe(topology), topology.chips
    tried: list[dict[str, Any]] = []
    candidates = list(settings(config, chips))
    for number, (name, changed) in enumerate(candidates, 1):
        try:
            found = plan_training(changed, topology, devices) | {"setting": name}
        except UsageError as error:
            if number == 1:  # the config itself
                raise
            found = {"setting": name, "refused": str(error)}
        else:
            tried.append(found)
        if tell is not None:
            tell(number, len(candidates), found)
    return sorted(tried, key=lambda plan: -(plan["tokens_per_s"] or -math.inf) if plan["fits"] else math.inf)


def settings(config: TrainConfig, chips: int) -> Any:
    """(name, config) of what `advise` compares: the config itself, data against FSDP, other remat, twice the batch."""
    yield "as configured", config
    mesh, model = config.mesh, config.model
    if mesh.fsdp * mesh.sequence * mesh.tensor < chips:
        yield (
            "fsdp over all chips",
            _with(config, mesh={"data": 1, "fsdp": chips, "sequence": 1, "tensor": 1}),
        )
    else:
        yield (
            "parameters repeated",
            _with(config, mesh={"data": chips, "fsdp": 1, "sequence": 1, "tensor": 1}),
        )
    for remat in ("dots", "full"):
        if model.remat != remat:
            yield f"remat {remat}", _with(config, model={"remat": remat})
    yield "twice the batch", smaller(config, 2 * config.data.batch_size)


def _with(config: TrainConfig, **parts: dict[str, Any]) -> TrainConfig:
    changed = {name: dataclasses.replace(getattr(config, name), **values) for name, values in parts.items()}
    return dataclasses.replace(config, **changed)
