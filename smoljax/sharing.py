"""How image tokens and word tokens share one embedding space: the part of an architecture that is varied.

The defaults are the released SmolVLM. Three more choices are made elsewhere in `smoljax.config`, where the released
models make them: `tie_embeddings` (output from the word table itself), `scale_factor` (pixel shuffle), and
`vision.num_layers`, which may be 0 (patches straight into the decoder, as in Fuyu). What changes only how a model is
trained (penalties, frozen parts) is an objective or a parameter group of `smoljax.training.config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from smoljax.errors import SmoljaxError

ImageAttention = Literal["causal", "bidirectional", "cross"]
Option = bool | int | float | str | None


@dataclass(frozen=True)
class SharingConfig:
    """One way of sharing the space.

    Attributes:
      connector: the name that a module of `smoljax.nn.connectors` is registered by: "linear" (released), "mlp",
        "norm_matched", "word_mixture", "visual_table", "nearest_word", or one of your own.
      options: fields of that module, in place of its defaults; a mapping, kept as sorted pairs.
      image_attention: how image tokens stand in the decoder: "causal" as words do (released); "bidirectional", a
        tile's tokens see each other both ways; "cross", they stand outside the sequence of words, which reads them
        by cross-attention in every layer (as Flamingo, Alayrac et al. 2022; an output projection that starts at
        zero takes the place of its gate).
      input_gradient: factor on the gradient that the word table gets as the decoder's input; its values do not change.
        A tied table leans to its use as output, whose gradients are larger (2603.26663); above 1 it leans less.
      own_rows: ids from this one on have rows of their own beside the word table, so that the table can be frozen while
        new tokens learn (reference: `DecoupledEmbedding` of Idefics); None: all rows in one table.
    """

    connector: str = "linear"
    options: Mapping[str, Option] | tuple[tuple[str, Option], ...] = ()
    image_attention: ImageAttention = "causal"
    input_gradient: float = 1.0
    own_rows: int | None = None

    def __post_init__(self) -> None:
        """Sorts the options; raises SmoljaxError for a value out of its range."""
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        try:
            options = tuple(sorted((str(name), value) for name, value in pairs))
        except (TypeError, ValueError) as error:
            raise SmoljaxError(
                f"sharing options: {self.options!r} is no mapping of names to values"
            ) from error
        object.__setattr__(self, "options", options)
        if self.image_attention not in get_args(ImageAttention):
            known = ", ".join(get_args(ImageAttention))
            raise SmoljaxError(f"image_attention is {self.image_attention!r}; it must be one of {known}")
        if not 0 <= self.input_gradient <= 100:
            raise SmoljaxError(f"input_gradient is {self.input_gradient}; it must be between 0 and 100")
        if self.own_rows is not None and self.own_rows < 1:
            raise SmoljaxError(f"own_rows is {self.own_rows}; it must be an id from 1 on, or None")

    @property
    def released(self) -> bool:
        """Whether the released models' files can hold such a model: training it otherwise does not change that."""
        return (self.connector, self.options, self.image_attention, self.own_rows) == (
            "linear",
            (),
            "causal",
            None,
        )


RELEASED = SharingConfig()


def sharing_from_dict(data: Mapping[str, Any]) -> SharingConfig:
    """The inverse of `dataclasses.asdict`, from JSON, where pairs are lists.

    Raises:
      SmoljaxError: an unknown key, or a value out of its range.
    """
    known = SharingConfig.__dataclass_fields__
    if unknown := sorted(set(data) - set(known)):
        raise SmoljaxError(f"unknown sharing config key(s): {', '.join(unknown)}")
    values = dict(data)
    if "options" in values:
        values["options"] = tuple((name, value) for name, value in values["options"])
    return SharingConfig(**values)
