"""Stage 3: the model of stage 2 learns to answer: more questions a picture, and short answers weigh as much as long.

smoljax train experiments/scenes/answers.py --workdir runs/answers

In stage 2 a caption's forty learned tokens outweigh the two of each question about the same picture. Here a token of
a conversation with n learned ones counts 1/√n, a row holds nearly all questions of its picture, and the characters
of printed words weigh more among the labels of the patches.
"""

from dataclasses import replace

from experiments.scenes import nano
from experiments.scenes.dense import LABELS
from smoljax.data.config import DataConfig
from smoljax.training.config import Contrastive, Dense, ModelConfig, NextToken

OPTIONS = {**nano.OPTIONS, "questions": 20, "kinds": {"reading": 4.0, "relation": 1.5, "count": 1.2}}


def data(split: str) -> DataConfig:
    return nano.data(split, OPTIONS, 320)


config = replace(
    nano.config,
    name="smolvlm-nano-answers",
    model=ModelConfig(start="runs/nano/model"),
    data=data("train"),
    objectives=(
        NextToken(balance=0.5),
        Contrastive(weight=0.1, kind="infonce", scale=40.0),
        Dense(LABELS, weight=1.0, label_weights=(1.0, 1.0, 1.0, 1.0, 4.0)),
    ),
    steps=8000,
    validation=data("validation"),
    seed=1,
)
