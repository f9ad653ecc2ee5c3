"""What all variants of a seed start from: a patch encoder that sees, fresh words and a fresh decoder.

smoljax train experiments/embedding_sharing/dense.py --set seed=0 --workdir runs/embedding_sharing/dense-0
"""

from dataclasses import replace

from experiments.scenes import dense
from smoljax import presets
from smoljax.training.config import CheckpointConfig, Dense, ModelConfig, TrainConfig

OUT = "runs/embedding_sharing"
BASE = replace(presets.smolvlm_nano(vision_width=128, text_width=128, text_layers=4), tie_embeddings=False)
STEPS = 1500


def config(seed: int = 0) -> TrainConfig:
    """The encoder's own stage (experiments/scenes/dense.py) for the grid's size."""
    return replace(
        dense.config,
        name=f"dense-{seed}",
        model=ModelConfig(BASE, dense.PROCESSOR),
        objectives=(Dense(dense.LABELS[:4]),),  # no characters: the grid asks nobody to read
        steps=STEPS,
        optimizer=replace(dense.config.optimizer, name="muon", warmup_steps=50),
        validation_batches=8,
        checkpoint=CheckpointConfig(every=500, keep_last=1, keep_best=0),
        seed=seed,
    )
