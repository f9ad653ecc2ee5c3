"""smoljax as a contender in training: `python -m smoljax.bench.train_ours SPEC`.

SPEC as JSON: model, a native folder; and what differs from `SETTINGS`.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax

from smoljax.bench.contender import serve
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import training_batch
from smoljax.bench.train_steps import CLIP, LR, WEIGHT_DECAY, timed_steps
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

#: What docs/training.md advises on a CPU.
SETTINGS = {"scan_layers": True, "remat": "full", "chunk": 1024, "host_devices": 1, "fsdp": 1}


@dataclass(frozen=True)
class Prepared:
    """A compiled step with its state: `one` does it and gives the loss when its work is done."""

    one: Callable[[], float]
    tokens: int
    compile_s: float
    temporary_bytes: int | None


class TrainOurs:
    """The actions."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = {**SETTINGS, **spec}

    def step(self, rows: int, words: int, steps: int) -> dict[str, Any]:
        """Seconds and losses of `steps` steps on one batch, float32, AdamW; compiled, and loaded, first.

        Beside them `tokens` of a row, `compile_s` and `temporary_bytes` of the compiled step.
        """
        made = self.prepare(rows, words, steps)
        found = {name: getattr(made, name) for name in ("tokens", "compile_s", "temporary_bytes")}
        return {**timed_steps(made.one, steps), **found}

    def prepare(self, rows: int, words: int, steps: int = 100) -> Prepared:
        """The step of a run of so many `steps`, on one batch of `rows` of a tile and `words` words."""
        spec, folder = self.spec, Path(self.spec["model"])
        scan, remat = spec["scan_layers"], spec["remat"]
        config = TrainConfig(
            name="benchmark",
            model=ModelConfig(start=str(folder), scan_layers=scan, remat=remat),
            data=cast(Any, _Rows(rows)),
            objectives=(NextToken(chunk=spec["chunk"]),),
            steps=steps,
            optimizer=OptimizerConfig(
                lr=LR,
                beta2=0.999,
                weight_decay=WEIGHT_DECAY,
                clip=CLIP,
                warmup_steps=0,
                decay="constant",
            ),
            mesh=MeshConfig(fsdp=spec["fsdp"], host_devices=spec["host_devices"]),
        )
        use_host_devices(config)
        enable_compilation_cache()
        partition = rules_of(config.mesh).partition(make_mesh(config.mesh))
        model = open_checkpoint(folder).config.with_compute(scan_layers=scan, remat=remat)
        assert model.vision is not None
        arrays = training_batch(
            rows, words, model.image_seq_len, model.image_token_id, model.vision.image_size
        )
        nobody = cast(Processor, None)  # the batch is made already

        # Compiled before the weights are read: what compiling needs is free again by then.
        shapes = Start(model, nobody, abstract_params(model))
        optimizer, _, like = make_state(config, shapes, None, partition)
        sharding = batch_sharding(partition)
        run = jit_step(config, model, optimizer, like, None, partition)
        started = time.perf_counter()
        compiled = run.lower(like, place_batch(arrays, sharding), None).compile()
        compile_s = time.perf_counter() - started
        memory = compiled.memory_analysis()

        def weights() -> Start:
            params = load_checkpoint(folder, "float32").params
            return Start(model, nobody, stack_layers(params) if scan else params)

        state = make_state(config, weights(), None, partition)[1]()

        def one() -> float:
            nonlocal state
            state, found = compiled(state, place_batch(arrays, sharding), None)
            jax.block_until_ready(state)
            return float(found["loss"])

        held = memory.temp_size_in_bytes if memory else None
        return Prepared(one, arrays["input_ids"].shape[1], compile_s, held)

    def peak(self) -> dict[str, Any]:
        """Most memory so far."""
        return {"bytes": peak_bytes()}


class _Rows:
    """As much of a data config as the step reads."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size


def main() -> None:
    """Serves until the parent closes the pipe."""
    ours = TrainOurs(json.loads(sys.argv[1]))
    serve({"step": ours.step, "peak": ours.peak})


if __name__ == "__main__":
    main()
