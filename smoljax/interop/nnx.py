"""Any module of `smoljax.nn` as a Flax NNX module, and its parameters back.

The core stays on Linen; this is the one file that imports `flax.nnx`, and nothing imports this file. Flax's own
bridge does the work (`flax.nnx.bridge.ToNNX`): it keeps the Linen module as it is and holds its parameters as
`nnx.Param`s under the same names, so paths and masks of docs/architecture.md stay valid.
"""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from smoljax.errors import SmoljaxError, UsageError

try:
    from flax import nnx
    from flax.nnx import bridge
except Exception as error:  # an ill-matched pair fails with ImportError, AttributeError or TypeError
    raise SmoljaxError(
        f"flax.nnx cannot be imported (flax {flax.__version__}, jax {jax.__version__}): "
        f"{type(error).__name__}: {error}; upgrade both (pip install -U flax jax), or stay on Linen, "
        "which smoljax itself uses and which needs no NNX"
    ) from error


def to_nnx(module: nn.Module, params: Mapping[str, Any]) -> bridge.ToNNX:
    """A Linen module and its parameters as one stateful NNX module.

    Nothing is initialised or computed, and jax arrays are shared with `params`, not copied: do not go on using
    `params` after a jitted step that donates the model's state.

    Args:
      module: any module of `smoljax.nn`, such as `PatchEncoder(config)`; unbound.
      params: its plain nested dict, in the layout of `config.compute.scan_layers`; what `apply` takes under
        "params".

    Returns:
      A module that is called as the Linen one (`model(x)`); other methods by their names
      (`model.encode_images(pixels)`). `nnx.split`, `nnx.merge`, `nnx.jit`, `nnx.grad` and optimizers apply.

    Raises:
      UsageError: no parameters, or a whole variables dict instead of what stands under its "params".
    """
    if not params or set(params) == {"params"}:
        raise UsageError("to_nnx takes the parameters themselves: params, not {'params': params} and not {}")
    model = bridge.ToNNX(module)
    for name, part in params.items():
        # Nested dicts of Params become part of the module's state on assignment.
        setattr(model, name, jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf)), _plain(part)))
    return model


def from_nnx(model: nnx.Module) -> dict[str, Any]:
    """The parameters of an NNX module as a plain nested dict of arrays; the inverse of `to_nnx`.

    Its result fits the Linen module again, `smoljax.convert` writes it, and optax and Orbax take it. Of a larger
    NNX module that holds the model as an attribute, give the attribute.
    """
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _plain(tree: Any) -> Any:
    return {key: _plain(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree
