"""The one dense layer of the model and the two norms, as Linen modules."""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from smoljax.ops.norms import layer_norm, rms_norm


class Linear(nn.Module):
    """x·kernel (+ bias), computed in `dtype`.

    Every matrix of the model but the word table and its head passes through here, so
    `flax.linen.intercept_methods` on this class reaches them all (adapters, quantised weights).
    """

    features: int
    use_bias: bool
    dtype: str
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B X"]) -> Float[Array, "*B Y"]:
        """Maps the last axis from X to Y = `features`; kernel [X, Y], at first zero where `zero` says so, bias [Y]."""
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = checkpoint_name(jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)), "product")
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y


class RMSNorm(nn.Module):
    """See `smoljax.ops.norms.rms_norm`."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis; scale [D]."""
        return rms_norm(x, self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32), self.eps)


class LayerNorm(nn.Module):
    """See `smoljax.ops.norms.layer_norm`."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis; scale [D] and bias [D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, scale, bias, self.eps)
