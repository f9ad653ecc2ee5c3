"""A small run on scenes for experiments/faults to kill: smolvlm-nano with two layers of width 64 on either side."""

from experiments.scenes.dense import PROCESSOR
from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)

config = TrainConfig(
    "toy",
    ModelConfig(
        presets.smolvlm_nano(vision_width=64, text_width=64, vision_layers=2, text_layers=2),
        PROCESSOR,
        scan_layers=True,
    ),
    DataConfig(
        (SourceConfig("tfds:scenes:train", options={"caption": True, "questions": 2}),),
        batch_size=8,
        sequence_length=160,
        loss_on="answers",
        fit=True,
    ),
    (NextToken(),),
    steps=200,
    optimizer=OptimizerConfig("adamw", lr=1e-3, warmup_steps=20),
    mesh=MeshConfig(fsdp=2),
    checkpoint=CheckpointConfig(every=3, keep_last=2, keep_best=0),
    log_every=1,
)
