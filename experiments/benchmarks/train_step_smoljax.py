"""The smoljax side of `train_step`: a process of its own that trains a few steps and prints JSON.

python -m experiments.benchmarks.train_step_smoljax NATIVE_FOLDER BATCH.npz '{"steps": 4, "scan_layers": false, …}'
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from experiments.benchmarks.steps import timed_steps
from smoljax.convert.convert import load_checkpoint, open_checkpoint
from smoljax.models import enable_compilation_cache
from smoljax.nn.smolvlm import abstract_params
from smoljax.nn.stacking import stack_layers
from smoljax.processing.processor import Processor
from smoljax.training.config import MeshConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig
from smoljax.training.run import use_host_devices
from smoljax.training.setup import Start, make_state
from smoljax.training.sharding import batch_sharding, make_mesh, place_batch, rules_of
from smoljax.training.step import jit_step


def run(folder: Path, batch: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds and loss of each step, peak memory, and what compiling took."""
    scan, remat = settings["scan_layers"], settings["remat"]
    rows = len(batch["input_ids"])
    config = TrainConfig(
        name="benchmark",
        model=ModelConfig(start=str(folder), scan_layers=scan, remat=remat),
        data=cast(Any, _Rows(rows)),
        objectives=(NextToken(chunk=settings["chunk"]),),
        steps=settings["steps"],
        optimizer=OptimizerConfig(
            lr=settings["lr"],
            beta2=0.999,
            weight_decay=settings["weight_decay"],
            warmup_steps=0,
            decay="constant",
        ),
        mesh=MeshConfig(fsdp=settings["fsdp"], host_devices=settings["host_devices"]),
    )
    use_host_devices(config)
    enable_compilation_cache()
    partition = rules_of(config.mesh).partition(make_mesh(config.mesh))
    model = open_checkpoint(folder).config.with_compute(scan_layers=scan, remat=remat)
    nobody = cast(Processor, None)  # the batch is made already

    # Compiled before the weights are read: what compiling needs is free again by then.
    optimizer, _, like = make_state(config, Start(model, nobody, abstract_params(model)), None, partition)
    sharding = batch_sharding(partition)
    step = jit_step(config, model, optimizer, like, None, partition)
    started = time.perf_counter()
    compiled = step.lower(like, place_batch(batch, sharding), None).compile()
    compile_s = time.perf_counter() - started
    memory = compiled.memory_analysis()

    params = load_checkpoint(folder, "float32").params
    params = stack_layers(params) if scan else params
    state = make_state(config, Start(model, nobody, params), None, partition)[1]()
    jax.block_until_ready(state)
    del params  # the trained copy is the only one from here on

    def one() -> float:
        nonlocal state
        state, found = compiled(state, place_batch(batch, sharding), None)
        jax.block_until_ready(state)
        return float(found["loss"])

    return {
        **timed_steps(one, config.steps),
        "compile_s": compile_s,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }


class _Rows:
    """As much of a data config as the step reads."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size


def main() -> None:
    folder, batch, settings = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(json.dumps(run(Path(folder), dict(np.load(batch)), json.loads(settings))))


if __name__ == "__main__":
    main()
