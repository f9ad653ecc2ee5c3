"""Stage 2: the whole model learns to describe, answer, read, point and match, from the encoder of stage 1.

smoljax train experiments/scenes/nano.py --workdir runs/nano
"""

from collections.abc import Mapping
from typing import Any

from experiments.scenes.dense import LABELS
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    Contrastive,
    Dense,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)

# One picture a row, and as many conversations about it as fit: a caption, two places, then questions.
OPTIONS = {
    "caption": True,
    "questions": 12,
    "boxes": 2,
    "contrastive": True,
    "dense": True,
    "kinds": {"relation": 1.5, "reading": 4.0, "count": 1.2, "colour": 0.8, "shape": 0.8},
}


def data(split: str, options: Mapping[str, Any] = OPTIONS, tokens: int = 224) -> DataConfig:
    return DataConfig(
        (SourceConfig(f"tfds:scenes:{split}", options=options),),
        batch_size=16,
        sequence_length=tokens,
        loss_on="answers",
        fit=True,
    )


config = TrainConfig(
    name="smolvlm-nano",
    model=ModelConfig(start="runs/dense/model"),
    data=data("train"),
    objectives=(NextToken(), Contrastive(weight=0.1, kind="infonce"), Dense(LABELS, weight=0.5)),
    steps=5200,
    optimizer=OptimizerConfig("adamw", lr=1e-3, warmup_steps=200, decay="linear", final_lr=0.02),
    validation=data("validation"),
    validate_every=500,
    mesh=MeshConfig(host_devices=2),
    checkpoint=CheckpointConfig(every=500),
    log_every=25,
)
