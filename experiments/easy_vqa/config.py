"""Fine-tunes the bundled model on easy-vqa: about five minutes on two cores.

    smoljax train experiments/easy_vqa/config.py [--set model.start=runs/nano/model]

One picture a row, with as many of its questions as fit (about six of ten), another choice each epoch.
"""

from dataclasses import replace

from experiments.easy_vqa.draw import drawn
from experiments.easy_vqa.prepare import path_of, prepare
from experiments.scenes import nano
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import CheckpointConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig


def data(split: str) -> DataConfig:
    source = SourceConfig(str(path_of(split)), mapping=drawn, options={"mirror": split == "train"})
    return replace(nano.data(split), sources=(source,), sequence_length=160)


def config() -> TrainConfig:
    prepare()
    return replace(
        nano.config,
        name="easy-vqa",
        model=ModelConfig(start="smolvlm-nano", fresh_rows=0.9),
        data=data("train"),
        objectives=(NextToken(),),
        steps=500,
        optimizer=OptimizerConfig("adamw", lr=6e-4, warmup_steps=40, decay="linear", final_lr=0.02),
        validation=data("validation"),
        validate_every=125,
        validation_batches=15,
        checkpoint=CheckpointConfig(every=125),
        log_every=10,
    )
