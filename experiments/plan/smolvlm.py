"""SmolVLM2 of any size on a TPU slice, packed rows with pictures: for `smoljax plan`, and to train.

    smoljax plan experiments/plan/smolvlm.py --topology v5e:16x16 --set size=2.2b
    smoljax train experiments/plan/smolvlm.py --set size=2.2b --set start=HuggingFaceTB/SmolVLM2-2.2B-Instruct \\
      --set data.sources.0.data=mine.jsonl

A row of 2048 tokens holds one picture of four by four tiles and the whole picture (17 tiles; of 2.2B three by four, 13)
and the conversation about it; one of 8192 four of them.
"""

from smoljax import presets
from smoljax.config import Remat
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.errors import UsageError
from smoljax.training.config import Group, MeshConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig

TILES = {"256m": 17, "500m": 17, "2.2b": 13}  # of a picture, that 2048 tokens hold


def config(
    size: str = "2.2b",
    *,
    start: str = "",
    tokens: int = 2048,
    rows: int = 256,
    fsdp: int = 128,
    remat: Remat = "full",
) -> TrainConfig:
    """The run.

    Args:
      size: "256m", "500m" or "2.2b".
      start: a model that it goes on from; without one it can be planned and not trained.
      tokens: of a row.
      rows: of a batch, all chips together.
      fsdp: ways that parameters are split; the rest of the chips repeats them. The patch encoder's 1152 numbers divide
        by 128 and not by 256, and what does not divide stays whole on every chip.
      remat: what the backward pass recomputes.
    """
    if size not in TILES:
        raise UsageError(f"size {size!r}; known: {', '.join(TILES)}")
    return TrainConfig(
        f"smolvlm2-{size}",
        ModelConfig(
            None if start else presets.get(f"smolvlm2-{size}"),
            None if start else "none",
            start=start or None,
            dtype="bfloat16",
            scan_layers=True,
            remat=remat,
        ),
        DataConfig(
            (SourceConfig("runs/start/data.jsonl"),),
            batch_size=rows,
            sequence_length=tokens,
            max_tiles=TILES[size] * max(1, tokens // 2048),
            pack=True,
            branches=False,
        ),
        (NextToken(chunk=2048),),
        steps=6000,
        # The rates of SmolVLM2's own training: decoder 2e-5, encoder 5e-6, connector 1e-4.
        optimizer=OptimizerConfig(
            "adamw",
            lr=2e-5,
            beta2=0.999,
            warmup_steps=180,
            groups=(Group("^vision/", lr=0.25), Group("^connector/", lr=5.0)),
        ),
        mesh=MeshConfig(data=-1, fsdp=fsdp),
    )
