"""The variants of the grid: what each changes of the base run, and nothing else.

One of your own: a file in experiments/embedding_sharing/own/ that calls `add` (docs/your_connector.md).
"""

import importlib
import pkgutil
from dataclasses import dataclass, replace

from smoljax.config import SmolVLMConfig
from smoljax.nn.adapt import Tie
from smoljax.sharing import RELEASED, SharingConfig
from smoljax.training.config import BagOfWords, Commitment, Contrastive, GapPenalty, Objective, SoftTie


@dataclass(frozen=True)
class Variant:
    """One way of sharing the space, as a change of the base run.

    Attributes:
      name: of the row; `--set sharing=NAME`.
      family: which rows it stands with in the report.
      about: what it is, in a few words.
      sharing: connector and attention.
      tie: "table" for one table as input and output; None for two, as released.
      objectives: added to the base run's.
      scale_factor: pixel shuffle.
      encoder: False: patches straight into the decoder, which has as many layers more.
      own: of a file in the folder `own`; such rows are on both levels.
    """

    name: str
    family: str
    about: str
    sharing: SharingConfig = RELEASED
    tie: Tie | None = None
    objectives: tuple[Objective, ...] = ()
    scale_factor: int = 2
    encoder: bool = True
    own: bool = True

    def architecture(self, base: SmolVLMConfig) -> SmolVLMConfig:
        """The whole model, from the base run's."""
        vision, text = base.vision, base.text
        assert vision is not None
        if not self.encoder:
            text = replace(text, num_layers=text.num_layers + vision.num_layers)
            vision = replace(vision, num_layers=0)
        return replace(
            base,
            vision=vision,
            text=text,
            sharing=self.sharing,
            scale_factor=self.scale_factor,
            tie_embeddings=self.tie is not None,
        )


VARIANTS: dict[str, Variant] = {}


def add(variant: Variant) -> Variant:
    """Puts a row into the grid; the last of a name counts."""
    VARIANTS[variant.name] = variant
    return variant


def known() -> dict[str, Variant]:
    """All variants, those of the folder `own` included."""
    from experiments.embedding_sharing import own

    for module in pkgutil.iter_modules(own.__path__):
        importlib.import_module(f"{own.__name__}.{module.name}")
    return VARIANTS


for _variant in (
    Variant("linear", "connector", "one projection, two tables: as released"),
    Variant("mlp", "connector", "two products with a GELU", SharingConfig("mlp")),
    Variant(
        "norm_matched",
        "connector",
        "projection at the words' length, and a learned shift",
        SharingConfig("norm_matched", {"bias": True}),
    ),
    Variant("tied", "table", "one table as input and output", tie="table"),
    Variant("soft_tie", "table", "two tables drawn together", objectives=(SoftTie(0.1),)),
    Variant(
        "tied_scaled",
        "table",
        "one table, four times the input's gradient",
        SharingConfig(input_gradient=4.0),
        tie="table",
    ),
    Variant(
        "word_mixture",
        "words",
        "a softmax mixture of word rows",
        SharingConfig("word_mixture", {"temperature": 0.5}),
    ),
    Variant(
        "visual_table",
        "words",
        "a softmax mixture of 512 rows of its own",
        SharingConfig("visual_table"),
    ),
    Variant(
        "visual_table_words",
        "words",
        "the same, from word rows on",
        SharingConfig("visual_table", {"start": "words"}),
    ),
    Variant(
        "nearest_word",
        "words",
        "the nearest word row, gradients straight through",
        SharingConfig("nearest_word"),
        objectives=(Commitment(0.25),),
    ),
    Variant(
        "no_encoder",
        "decoder",
        "patches straight into a deeper decoder, without the stage of labels",
        encoder=False,
    ),
    Variant(
        "bidirectional",
        "decoder",
        "image tokens see each other both ways",
        SharingConfig(image_attention="bidirectional"),
    ),
    Variant(
        "cross",
        "decoder",
        "outside the space: cross-attention in every layer",
        SharingConfig(image_attention="cross"),
    ),
    Variant("shuffle4", "decoder", "pixel shuffle 4: 9 image tokens for 36", scale_factor=4),
    Variant(
        "contrastive",
        "objective",
        "pictures and captions pulled together (rows 44 tokens longer for the captions)",
        objectives=(Contrastive(0.1, "infonce"),),
    ),
    Variant(
        "bag_of_words",
        "objective",
        "what is said is to be read off image tokens",
        objectives=(BagOfWords(0.2, balance=0.5),),
    ),
    Variant(
        "gap_penalty", "objective", "image tokens and words on one centroid", objectives=(GapPenalty(1.0),)
    ),
):
    add(replace(_variant, own=False))
