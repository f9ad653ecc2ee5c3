"""What a way of sharing costs: parameters, bytes, operations of a forward pass by the compiler's count."""

from collections.abc import Mapping
from typing import Any

import jax

from smoljax.config import SmolVLMConfig
from smoljax.nn.smolvlm import abstract_params, count_params, forward


def cost(config: SmolVLMConfig, batch: Mapping[str, Any]) -> dict[str, int]:
    """Parameters by part, and floating-point operations of one forward pass over a batch without logits.

    Args:
      config: of the model.
      batch: arrays or `jax.ShapeDtypeStruct`s; only shapes are read.

    Returns:
      `parameters`, `parameters_PART`, `bytes` (float32), `flops`. With cross-attention they count `<image>` places that
      pass through all layers, and keys and values of words' places, which a program made for it would leave out.
    """
    # The compiler counts what a loop does once, layers of a scan as well as heads of attention head by head.
    config = config.with_compute(scan_layers=False, remat="none", attention="plain")
    params = abstract_params(config)
    names = ("input_ids", "tile_mask", "positions", "branch_ids", "segment_ids", "pixel_values")
    shapes = {
        name: jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype) for name in names if name in batch
    }
    lowered = jax.jit(lambda p, b: forward(config, p, b, logits="none").hidden).lower(params, shapes)
    analysis = lowered.cost_analysis()
    total = count_params(params)[1]
    parts = {f"parameters_{name}": count_params(part)[1] for name, part in params.items()}
    return {"parameters": total, **parts, "bytes": 4 * total, "flops": int((analysis or {}).get("flops", 0))}
