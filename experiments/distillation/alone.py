"""The student without a teacher: next-token loss alone.

smoljax train experiments/distillation/alone.py --workdir runs/distillation/seed0/alone \\
    --set model.start=runs/distillation/seed0/dense/model --set seed=0
"""

from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)

# As the bundled model is taught (experiments/scenes/nano.py), without its contrastive and dense parts.
OPTIONS = {
    "caption": True,
    "questions": 12,
    "boxes": 2,
    "kinds": {"relation": 1.5, "reading": 4.0, "count": 1.2, "colour": 0.8, "shape": 0.8},
}


def data(split: str) -> DataConfig:
    return DataConfig(
        (SourceConfig(f"tfds:scenes:{split}", options=OPTIONS),),
        batch_size=16,
        sequence_length=192,
        loss_on="answers",
        fit=True,
    )


config = TrainConfig(
    name="student-alone",
    model=ModelConfig(start="runs/distillation/seed0/dense/model"),
    data=data("train"),
    objectives=(NextToken(),),
    steps=400,
    optimizer=OptimizerConfig("adamw", lr=1.5e-3, warmup_steps=40, decay="linear", final_lr=0.02),
    validation=data("validation"),
    validate_every=200,
    validation_batches=8,
    mesh=MeshConfig(host_devices=2),
    checkpoint=CheckpointConfig(every=100, keep_best=0),
    log_every=10,
)
