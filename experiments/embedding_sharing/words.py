"""Level (b): real words. SmolLM2-135M with its table as it is, and a small patch encoder that saw scenes.

    smoljax fetch smollm2-135m
    smoljax train experiments/embedding_sharing/words.py --set sharing=word_mixture --set seed=0

The start, made once, puts smolvlm-nano's patch encoder before SmolLM2; the connector is fresh. Only encoder, connector
and the rows of the new tokens learn, and the decoder at a tenth of the rate (not in the row *frozen*), but never its
word table: the nearest word of an image token is a word that a language model of trillions of tokens knows.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.embedding_sharing.variants import Variant, known
from experiments.scenes import nano
from smoljax.config import SmolVLMConfig
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import load_checkpoint
from smoljax.convert.native import save_native
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.errors import UsageError
from smoljax.models import resolve
from smoljax.processing.released import processor_files
from smoljax.sharing import SharingConfig
from smoljax.training.config import (
    CheckpointConfig,
    Commitment,
    Group,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)

START = "runs/embedding_sharing/words-start"
TEXT, SIGHT = "smollm2-135m", "smolvlm-nano"
OPTIONS = {"caption": True, "questions": 5, "boxes": 0, "kinds": {"reading": 0.0}}
TABLE, DECODER = "^embedding/table$", "^decoder/"
FROZEN = (Group(TABLE, frozen=True), Group(DECODER, frozen=True))
TUNED = (Group(TABLE, frozen=True), Group(DECODER, lr=0.1))
STEPS = 150
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("linear", "connector", "one projection"),
        Variant("frozen", "decoder", "one projection, and a decoder that stays as it is"),
        Variant("mlp", "connector", "two products with a GELU", SharingConfig("mlp")),
        Variant(
            "norm_matched", "connector", "at the words' length", SharingConfig("norm_matched", {"bias": True})
        ),
        Variant(
            "word_mixture",
            "words",
            "a softmax mixture of the 49,280 word rows",
            SharingConfig("word_mixture", {"temperature": 1.5}),
        ),
        Variant(
            "visual_table_words",
            "words",
            "a mixture of 512 rows of its own that start as words",
            SharingConfig("visual_table", {"start": "words"}),
        ),
        Variant(
            "nearest_word",
            "words",
            "the nearest word row",
            SharingConfig("nearest_word"),
            objectives=(Commitment(0.25),),
        ),
    )
}


def start(folder: Path) -> Path:
    """The model that all variants start from, made unless it is there."""
    if (folder / "smoljax.json").exists():
        return folder
    text, sight = (load_checkpoint(resolve(name), "float32", resolve=resolve) for name in (TEXT, SIGHT))
    vision = sight.config.vision
    assert vision is not None
    tokens = (vision.grid // 2) ** 2
    files = processor_files(
        text.files["tokenizer.json"],
        tile_size=vision.image_size,
        longest_edge=vision.image_size,
        image_seq_len=tokens,
        video=False,
    )
    known, words = text.config.text.vocab_size, 49280
    rng = np.random.default_rng(0)
    table = np.asarray(text.params["embedding"]["table"])
    rows = rng.normal(0, table.std(), (words - known, table.shape[1])).astype(np.float32)
    config = SmolVLMConfig(
        vision=vision,
        text=replace(text.config.text, vocab_size=words),
        scale_factor=2,
        image_token_id=49190,
        tie_embeddings=True,
        model_type="idefics3",
    )
    width = vision.hidden_size * 4
    kernel = rng.normal(0, width**-0.5, (width, table.shape[1])).astype(np.float32)
    params = {
        "vision": sight.params["vision"],
        "connector": {"proj": {"kernel": kernel}},
        "embedding": {"table": np.concatenate([table, rows])},
        "decoder": text.params["decoder"],
    }
    save_native(Checkpoint(config, params, files, source=f"{TEXT} behind the eyes of {SIGHT}"), folder)
    return folder


def data(split: str) -> DataConfig:
    source = SourceConfig(f"tfds:scenes:{split}", options=OPTIONS)
    return DataConfig(
        (source,),
        batch_size=8,
        sequence_length=160,
        loss_on="answers",
        split=False,
        longest_edge=96,
        fit=True,
    )


def config(sharing: str = "linear", seed: int = 0) -> TrainConfig:
    """The run of a variant; `sharing` is a key of VARIANTS."""
    variants = {**{name: item for name, item in known().items() if item.own}, **VARIANTS}
    if sharing not in variants:
        raise UsageError(f"no variant {sharing!r}; known: {', '.join(variants)}")
    variant = variants[sharing]
    if not variant.encoder:
        raise UsageError(f"{sharing}: a variant without the patch encoder has no place on real words")
    return TrainConfig(
        name=f"words-{sharing}-{seed}",
        model=ModelConfig(
            start=str(start(Path(START))),
            sharing=replace(variant.sharing, own_rows=49152),
            tie=variant.tie,
            scale_factor=variant.scale_factor,
            scan_layers=True,
        ),
        data=data("train"),
        objectives=(NextToken(balance=0.5), *variant.objectives),
        steps=STEPS,
        optimizer=OptimizerConfig(
            "adamw",
            lr=1e-3,
            warmup_steps=20,
            decay="linear",
            final_lr=0.05,
            groups=FROZEN if sharing == "frozen" else TUNED,
        ),
        validation=data("validation"),
        validate_every=50,
        validation_batches=4,
        mesh=nano.config.mesh,
        checkpoint=CheckpointConfig(every=50, keep_last=1, keep_best=0),
        log_every=5,
        seed=seed,
    )
