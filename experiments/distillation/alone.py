"""The student without a teacher: next-token loss alone.

smoljax train experiments/distillation/alone.py --workdir runs/distillation/seed0/alone \\
    --set model.start=runs/distillation/seed0/dense/model --set seed=0
"""

from dataclasses import replace

from experiments.scenes import nano
from smoljax.data.config import DataConfig
from smoljax.training.config import CheckpointConfig, ModelConfig, NextToken, OptimizerConfig

# As the bundled model is taught, without its contrastive and dense parts.
OPTIONS = {**nano.OPTIONS, "contrastive": False, "dense": False}


def data(split: str) -> DataConfig:
    return nano.data(split, OPTIONS, 192)


config = replace(
    nano.config,
    name="student-alone",
    model=ModelConfig(start="runs/distillation/seed0/dense/model"),
    data=data("train"),
    objectives=(NextToken(balance=0.5),),
    steps=400,
    optimizer=OptimizerConfig("adamw", lr=1.5e-3, warmup_steps=40, decay="linear", final_lr=0.02),
    validation=data("validation"),
    validate_every=200,
    validation_batches=8,
    checkpoint=CheckpointConfig(every=100, keep_best=0),
    log_every=10,
)
