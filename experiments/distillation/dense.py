"""The student's first stage, which both arms go on from: what does each patch show?

    smoljax train experiments/distillation/dense.py --workdir runs/distillation/seed0/dense --set seed=0

The stage of the bundled model (experiments/scenes/dense.py), shorter, for a model of 2.0 M parameters.
"""

from dataclasses import replace

from experiments.scenes.dense import PROCESSOR
from experiments.scenes.dense import config as big
from smoljax import presets
from smoljax.training.config import CheckpointConfig, ModelConfig

STUDENT = presets.smolvlm_nano(vision_width=128, text_width=128)
STEPS = 1000

config = replace(
    big,
    name="student-dense",
    model=ModelConfig(STUDENT, PROCESSOR),
    steps=STEPS,
    optimizer=replace(big.optimizer, warmup_steps=50),
    validation_batches=8,
    checkpoint=CheckpointConfig(every=250, keep_best=0),
)
