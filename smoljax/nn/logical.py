"""Names of the parameters' dimensions, by path: what a mesh is told to split is a name, never an array."""

import re

from smoljax.config import SmolVLMConfig

# The first pattern that matches a path's end names the last dimensions; those before (stacked layers) have no name.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^vision/.*attention/(q|k|v)/kernel$", ("embed", "vision_heads")),
    (r"^vision/.*attention/(q|k|v)/bias$", ("vision_heads",)),
    (r"^vision/.*attention/out/kernel$", ("vision_heads", "embed")),
    (r"(attention|cross)/q/kernel$", ("embed", "heads")),
    (r"(attention|cross)/(k|v)/kernel$", ("embed", "kv_heads")),
    (r"(attention|cross)/out/kernel$", ("heads", "embed")),
    (r"mlp/(gate|up|fc1)/kernel$", ("embed", "mlp")),
    (r"mlp/fc1/bias$", ("mlp",)),
    (r"mlp/(down|fc2)/kernel$", ("mlp", "embed")),
    (r"embedding/(table|head|rows|head_rows)$", ("vocab", "embed")),
    (r"connector/rows$", ("vocab", "embed")),
    (r"connector/fc1/kernel$", ("shuffled", "mlp")),
    (r"connector/fc2/kernel$", ("mlp", "embed")),
    (r"connector/[a-z]+/kernel$", ("shuffled", "embed")),
    (r"patch_embedding/kernel$", ("pixels", "embed")),
    (r"position_embedding$", ("patches", "embed")),
    (r"norm\d?/(scale|bias)$", (None,)),
    (r"/bias$", (None,)),
)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """The names of a parameter's dimensions.

    Args:
      path: "decoder/layers_0/mlp/up/kernel"; what stands before it (an optimizer's moments) does not count.
      ndim: how many dimensions it has.

    Returns:
      A name or None for each; all None for a path that no rule knows.
    """
    tail = re.search(r"(vision|connector|embedding|decoder)/.*$", path)
    if tail:
        for pattern, axes in _AXES:
            if re.search(pattern, tail.group()) and ndim >= len(axes):
                return (None,) * (ndim - len(axes)) + axes
    return (None,) * ndim


def units(config: SmolVLMConfig) -> dict[str, int]:
    """Of how many pieces that must stay whole a name's dimension consists: a head is never split."""
    found = {"heads": config.text.num_heads, "kv_heads": config.text.num_kv_heads}
    if config.vision is not None:
        found["vision_heads"] = config.vision.num_heads
    return found
