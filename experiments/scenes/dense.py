"""Stage 1: the patch encoder learns to see. What is under each patch: shape, colour, size, texture, character?

    smoljax train experiments/scenes/dense.py

A quarter of an hour on two cores. Without it the whole model is stuck for a long time on what a patch shows.
"""

from pathlib import Path

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    Dense,
    Group,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

PROCESSOR = str(Path(__file__).parent / "processor")
# Classes with "nothing here": 8 shapes, 8 colours, 2 sizes, 3 textures, 36 characters.
LABELS = (
    ("object_shape", 9),
    ("object_colour", 9),
    ("object_size", 3),
    ("object_texture", 4),
    ("character", 37),
)
REST = Group("^(connector|embedding|decoder)/", frozen=True)  # not used here
OPTIONS = {"caption": False, "questions": 0, "boxes": 0, "dense": True}


def data(split: str) -> DataConfig:
    return DataConfig(
        (SourceConfig(f"tfds:scenes:{split}", options=OPTIONS),), batch_size=16, sequence_length=44
    )


config = TrainConfig(
    name="scenes-dense",
    model=ModelConfig(presets.smolvlm_nano(), PROCESSOR),
    data=data("train"),
    objectives=(Dense(LABELS),),
    steps=3000,
    optimizer=OptimizerConfig(
        "adamw", lr=1.5e-3, warmup_steps=100, decay="linear", final_lr=0.1, groups=(REST,)
    ),
    validation=data("validation"),
    validate_every=500,
    mesh=MeshConfig(host_devices=2),
    checkpoint=CheckpointConfig(every=500),
    log_every=25,
)
