"""The connector: patches of the encoder → image tokens in the decoder's embedding space."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from smoljax.nn.linear import Linear
from smoljax.ops.image_tokens import pixel_shuffle


class Connector(nn.Module):
    """Pixel shuffle and one bias-free projection (reference: `SmolVLMConnector`).

    Also the interface of every other connector (`smoljax.nn.connectors`): a subclass writes `connect`.

    Attributes:
      features: D, the decoder's width.
      scale_factor: scale_factor² neighbouring patches become one image token.
      dtype: compute dtype.
      reads_words: whether `connect` is given the word table.
      above_zero, from_zero: options that must be above 0, or 0 or more.
    """

    reads_words: ClassVar[bool] = False
    above_zero: ClassVar[tuple[str, ...]] = ()
    from_zero: ClassVar[tuple[str, ...]] = ()
    features: int
    scale_factor: int
    dtype: str = "float32"

    def __call__(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None = None
    ) -> Float[Array, "*B Q D"]:
        """Q = P / scale_factor² image tokens of width D; `table` is the word table, for those that read it."""
        return self.connect(patches, table)[0]

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """Image tokens, and what else there is to see of them.

        Args:
          patches: the encoder's output.
          table: the word table, float32.

        Returns:
          Image tokens; and a dict that may hold `codes` [*B, Q, K], weights over the K rows of a table that a token was
          mixed from, and `residual` [*B, Q], its squared distance from the row that replaced it.
        """
        return self.projected(patches), {}

    def projected(self, patches: Float[Array, "*B P E"]) -> Float[Array, "*B Q D"]:
        """Pixel shuffle and the projection `proj`; for use inside `connect`."""
        shuffled = pixel_shuffle(patches, self.scale_factor)
        return Linear(self.features, False, self.dtype, name="proj")(shuffled)
