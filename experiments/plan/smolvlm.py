"""SmolVLM2 of any size on a TPU slice, packed rows with pictures: for `smoljax plan`, and to train.

    smoljax plan experiments/plan/smolvlm.py --topology v5e:16x16 --set size=2.2b
    smoljax init smolvlm2-2.2b runs/start/2.2b      # or convert a released checkpoint there
    smoljax train experiments/plan/smolvlm.py --set size=2.2b --set data.sources.0.data=mine.jsonl --set mesh.fsdp=256

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
    size: str = "2.2b", tokens: int = 2048, rows: int = 256, chips: int = 256, remat: Remat = "full"
) -> TrainConfig:
    """The run.

    Args:
      size: "256m", "500m" or "2.2b".
      tokens: of a row.
      rows: of a batch, all chips together.
      chips: that parameters are split over.
      remat: what the backward pass recomputes.
    """
    if size not in TILES:
        raise UsageError(f"size {size!r}; known: {', '.join(TILES)}")
    return TrainConfig(
        f"smolvlm2-{size}",
        ModelConfig(
            presets.get(f"smolvlm2-{size}"),
            f"runs/start/{size}",
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
        # The released models' own rates: 2e-5 for the decoder, a fifth of it for the encoder, 1e-4 for the connector.
        optimizer=OptimizerConfig(
            "adamw",
            lr=2e-5,
            beta2=0.999,
            warmup_steps=180,
            groups=(Group("^vision/", lr=0.25), Group("^connector/", lr=5.0)),
        ),
        mesh=MeshConfig(data=1, fsdp=chips),
    )
