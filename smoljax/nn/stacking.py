"""A stack of equal layers, unrolled or scanned, and the conversion of parameters between the two layouts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import ComputeConfig, Remat
from smoljax.nn.by_layer import stand_in

#: What layers name (`jax.ad_checkpoint.checkpoint_name`) for policies that keep some things and not others. "mixed" is
#: what attention by heads mixes, and what its scores are made again from. Every `Linear` names its "product".
KEPT = ("layer_input", "q", "k", "v", "mixed", "attention_out")


def apply_layers(
    layer: type[nn.Module],
    fields: Mapping[str, Any],
    num_layers: int,
    compute: ComputeConfig,
    x: jax.Array,
    per_layer: Any,
    shared: Any,
) -> tuple[jax.Array, Any]:
    """Runs `num_layers` copies of `layer` one after the other, inside a compact method.

    Args:
      layer: module whose call is `(x, own, shared) -> (x, out)`.
      fields: its dataclass fields.
      num_layers: how many.
      compute: whether they are scanned and what is recomputed in the backward pass.
      x: activations that pass through.
      per_layer: a sequence of one pytree a layer when unrolled, a pytree of arrays with a leading layer axis
        when scanned, or None.
      shared: what every layer gets (masks, RoPE tables).

    Returns:
      The activations and the layers' `out`: a tuple when unrolled, stacked along a leading axis when scanned, ()
      without layers.
    """
    if not num_layers:  # patches straight through
        return x, ()
    if (stand := stand_in()) is not None:
        return stand(layer, fields, num_layers, x, per_layer, shared)
    if compute.remat != "none":
        layer = nn.remat(layer, policy=_policy(compute.remat), prevent_cse=not compute.scan_layers)
    if compute.scan_layers:
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=num_layers,
        )
        return scanned(**fields, name="layers")(x, per_layer, shared)
    outs: list[Any] = []
    for i in range(num_layers):
        own = None if per_layer is None else per_layer[i]
        x, out = layer(**fields, name=f"layers_{i}")(x, own, shared)
        outs.append(out)
    return x, tuple(outs)


def _policy(remat: Remat) -> Any:
    policies = jax.checkpoint_policies
    if remat == "dots":
        return policies.save_only_these_names("product", "mixed")
    if remat == "projections":
        return policies.save_only_these_names(*KEPT[1:])
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(KEPT),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return None


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """`layers_0 … layers_{L-1}` → `layers` with a leading axis L, wherever they stand in the tree."""

    def stack(*leaves: Any) -> Any:
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
        return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)

    names = sorted((k for k in params if _is_layer(k)), key=lambda k: int(k.split("_")[1]))
    out = {k: stack_layers(v) if isinstance(v, Mapping) else v for k, v in params.items() if k not in names}
    if names:
        out["layers"] = jax.tree.map(stack, *(params[k] for k in names))
    return out


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    out: dict[str, Any] = {}
    for key, value in params.items():
        if key != "layers":
            out[key] = unstack_layers(value) if isinstance(value, Mapping) else value
            continue
        length = jax.tree.leaves(value)[0].shape[0]
        for i in range(length):
            out[f"layers_{i}"] = jax.tree.map(_nth(i), value)
    return out


def truncate_layers(params: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The first `num_layers` layers of a part's parameters (either layout) with everything beside them.

    For people who take the first layers of a backbone, as robot policies do:
    `Decoder(dataclasses.replace(text, num_layers=16)).apply({"params": truncate_layers(p, 16)}, …)`.
    """
    out = {k: v for k, v in params.items() if not _is_layer(k) or int(k.split("_")[1]) < num_layers}
    if "layers" in out:
        out["layers"] = jax.tree.map(lambda a: a[:num_layers], out["layers"])
    return out


def captured(outs: Sequence[Mapping[str, jax.Array]] | Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What the layers captured, stacked along a leading layer axis whether they were scanned or not."""
    if isinstance(outs, Mapping):
        return dict(outs)
    return {key: jnp.stack([out[key] for out in outs]) for key in outs[0]} if outs else {}


def _is_layer(key: str) -> bool:
    return key.startswith("layers_") and key[len("layers_") :].isdigit()


def _nth(i: int) -> Callable[[Any], Any]:
    def take(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf[i]

    return take
