"""Level (a): a variant from scratch on scenes, about three minutes on two cores.

    # Once a seed: the encoder learns to see.
    smoljax train experiments/embedding_sharing/dense.py --set seed=0 --workdir runs/embedding_sharing/dense-0
    smoljax train experiments/embedding_sharing/scenes.py --set sharing=mlp --set seed=0

All variants of a seed start from the same encoder and, where shapes allow, the same words and decoder, and see the same
pictures and questions in the same order.
"""

from experiments.embedding_sharing.dense import BASE, OUT
from experiments.embedding_sharing.variants import Variant, known
from experiments.scenes import nano
from experiments.scenes.dense import PROCESSOR
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.errors import UsageError
from smoljax.training.config import (
    CheckpointConfig,
    Contrastive,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)

OPTIONS = {"caption": True, "questions": 9, "boxes": 1, "kinds": {"reading": 0.0}}
STEPS = 400
TOKENS = 192  # with the base's 36 image tokens
PAIR = 44  # a caption on its own, which sees no picture


def data(split: str, variant: Variant) -> DataConfig:
    """Rows in which the same conversations fit, however many image tokens a variant has."""
    tokens = TOKENS - BASE.image_seq_len + variant.architecture(BASE).image_seq_len
    pairs = any(isinstance(objective, Contrastive) for objective in variant.objectives)
    source = SourceConfig(f"tfds:scenes:{split}", options={**OPTIONS, "contrastive": pairs})
    return DataConfig(
        (source,), batch_size=16, sequence_length=tokens + PAIR * pairs, loss_on="answers", fit=True
    )


def config(sharing: str = "linear", seed: int = 0) -> TrainConfig:
    """The run of a variant.

    Args:
      sharing: a name of `variants.VARIANTS`, or of a file in `own`.
      seed: of what is fresh and of the order of data; the encoder's seed too.
    """
    variants = known()
    if sharing not in variants:
        raise UsageError(f"no variant {sharing!r}; known: {', '.join(variants)}")
    variant = variants[sharing]
    if variant.encoder:
        model = ModelConfig(
            start=f"{OUT}/dense-{seed}/model",
            sharing=variant.sharing,
            tie=variant.tie,
            scale_factor=variant.scale_factor,
        )
    else:
        model = ModelConfig(variant.architecture(BASE), PROCESSOR)
    return TrainConfig(
        name=f"{sharing}-{seed}",
        model=model,
        data=data("train", variant),
        objectives=(NextToken(balance=0.5), *variant.objectives),
        steps=STEPS,
        optimizer=OptimizerConfig("muon", lr=1.5e-3, warmup_steps=40, decay="linear", final_lr=0.02),
        validation=data("validation", variant),
        validate_every=100,
        validation_batches=8,
        mesh=nano.config.mesh,
        checkpoint=CheckpointConfig(every=200, keep_last=1, keep_best=0),
        log_every=10,
        seed=seed,
    )
