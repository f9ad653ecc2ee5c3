"""Fifty steps of the tiny model on each of several meshes of eight CPU devices: `python meshes.py FOLDER`; JSON."""

import json
import sys

import jax

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.data.pipeline import make_iterator
from smoljax.training.config import MeshConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig
from smoljax.training.setup import make_state, open_model
from smoljax.training.sharding import batch_sharding, make_mesh, place_batch, rules_of
from smoljax.training.step import jit_step

MESHES = {
    "one": MeshConfig(),
    "dp": MeshConfig(rules="dp"),
    "fsdp": MeshConfig(fsdp=4, rules="fsdp"),
    "fsdp_tp": MeshConfig(fsdp=2, tensor=2),
    "sequence": MeshConfig(fsdp=2, sequence=4),
    "all": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
}


def run(folder, name, steps):
    mesh = MESHES[name]
    config = TrainConfig(
        "meshes",
        ModelConfig(presets.tiny(), f"{folder}/processor", scan_layers=True),
        DataConfig(
            (SourceConfig(f"{folder}/data.jsonl"),),
            batch_size=8,
            sequence_length=96,
            max_tiles=2,
            pack=True,
            split=False,
            loss_on="answers",
        ),
        (NextToken(chunk=16),),
        steps=steps,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
        mesh=mesh,
    )
    devices = jax.devices()[:1] if name == "one" else jax.devices()
    partition = rules_of(mesh).partition(make_mesh(mesh, devices))
    start = open_model(config.model)
    optimizer, first, like = make_state(config, start, None, partition)
    step = jit_step(config, start.config, optimizer, like, None, partition)
    state, sharding = first(), batch_sharding(partition)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    data, losses = make_iterator(config.data, start.processor, 0), []
    for _ in range(steps):
        state, found = step(state, place_batch(next(data), sharding), None)
        losses.append(float(found["loss"]))
    return {"losses": losses, "bytes": held}


def main(folder):
    jax.config.update("jax_num_cpu_devices", 8)
    print(json.dumps({name: run(folder, name, 50) for name in MESHES}))


if __name__ == "__main__":
    main(*sys.argv[1:])
