"""The connector: patches of the encoder → image tokens in the decoder's embedding space."""

import flax.linen as nn
from jaxtyping import Array, Float

from smoljax.nn.linear import Linear
from smoljax.ops.image_tokens import pixel_shuffle


class Connector(nn.Module):
    """Pixel shuffle and one bias-free projection (reference: `SmolVLMConnector`).

    Attributes:
      features: D, the decoder's width.
      scale_factor: scale_factor² neighbouring patches become one image token.
      dtype: compute dtype.
    """

    features: int
    scale_factor: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, patches: Float[Array, "*B P E"]) -> Float[Array, "*B Q D"]:
        """Q = P / scale_factor² image tokens of width D."""
        return Linear(self.features, False, self.dtype, name="proj")(
            pixel_shuffle(patches, self.scale_factor)
        )
