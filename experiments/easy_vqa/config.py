"""Fine-tunes the bundled model on easy-vqa: about five minutes on two cores.

    smoljax train experiments/easy_vqa/config.py [--set model.start=runs/nano/model]

One picture a row, with as many of its questions as fit (about six of ten), another choice each epoch.
"""

from experiments.easy_vqa.draw import drawn
from experiments.easy_vqa.prepare import path_of, prepare
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)


def data(split: str) -> DataConfig:
    return DataConfig(
        (SourceConfig(str(path_of(split)), mapping=drawn, options={"mirror": split == "train"}),),
        batch_size=16,
        sequence_length=160,
        loss_on="answers",
        fit=True,
    )


def config() -> TrainConfig:
    prepare()
    return TrainConfig(
        name="easy-vqa",
        model=ModelConfig(start="smolvlm-nano"),
        data=data("train"),
        objectives=(NextToken(),),
        steps=500,
        optimizer=OptimizerConfig("adamw", lr=6e-4, warmup_steps=40, decay="linear", final_lr=0.02),
        validation=data("validation"),
        validate_every=125,
        validation_batches=15,
        mesh=MeshConfig(host_devices=2),
        checkpoint=CheckpointConfig(every=125),
        log_every=10,
    )
