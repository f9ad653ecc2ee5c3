"""Who teaches the shared rows: the gradient of the next-token loss into the word table, split by its way there.

2603.26663 finds tied tables to lean to the output, whose gradients are larger early on.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smoljax.config import SmolVLMConfig
from smoljax.nn.smolvlm import SmolVLM
from smoljax.training.objectives.next_token import next_token_sums, shift

WAYS = ("input", "image", "output")


def gradient_split(config: SmolVLMConfig, params: Any, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The gradient of the mean loss over learned tokens with respect to each row, by way.

    Returns:
      [V, D] float32 each: `input`, through the words that the decoder reads; `image`, through image tokens made of word
      rows (word_mixture, norm_matched's length aside; zeros for a connector that reads none); `output`, through
      the logits. Their sum is the tied table's gradient; of an untied model `output` is the head's. A model's
      `input_gradient` is in `input` and `image`.
    """
    keep = ("input_ids", "tile_mask", "positions", "branch_ids", "segment_ids", "loss_mask", "pixel_values")
    found = _program(config, params, {name: batch[name] for name in keep if name in batch})
    return dict(zip(WAYS, map(np.asarray, found), strict=True))


def split_summary(split: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Norms of a split by way, all rows and by class of rows, and how input and output agree.

    Args:
      split: of `gradient_split`.
      classes: name → row ids.

    Returns:
      `norm`: way → Frobenius norm; `cosine`: between input (with image) and output; `by_class`: name → way → norm.
    """
    inputs, output = split["input"] + split["image"], split["output"]
    size = np.linalg.norm(inputs) * np.linalg.norm(output)
    return {
        "norm": {way: float(np.linalg.norm(grad)) for way, grad in split.items()},
        "cosine": float((inputs * output).sum() / max(size, 1e-30)),
        "by_class": {
            name: {way: float(np.linalg.norm(grad[ids])) for way, grad in split.items()}
            for name, ids in classes.items()
        },
    }


@partial(jax.jit, static_argnums=0)
def _program(config: SmolVLMConfig, params: Any, batch: dict[str, Array]) -> tuple[Array, Array, Array]:
    model = SmolVLM(config)
    table = params["embedding"]["table"]
    rows = params["embedding"].get("rows")
    first = config.sharing.own_rows

    def own(words: Array) -> dict[str, Any]:
        part = {**params["embedding"], "table": words}
        if rows is not None:
            part["rows"] = words[first:]
        return {**params, "embedding": part}

    whole = table if rows is None else jnp.concatenate([table[:first], rows])

    def loss(inputs: Array, image: Array, head: Array) -> Array:
        features = None
        if config.vision is not None and batch["pixel_values"].shape[1]:
            found: Any = model.apply(
                {"params": own(image)}, batch["pixel_values"], method=SmolVLM.encode_images
            )
            features = found[0]
        fed = {**batch, "attention_mask": batch["segment_ids"] > 0}
        decoded: Any = model.apply({"params": own(inputs)}, fed, features, method=SmolVLM.decode)
        targets, learned = shift(batch["input_ids"], batch["loss_mask"], batch["positions"])
        hidden = decoded[1].reshape(-1, decoded[1].shape[-1])
        weights = learned.reshape(-1).astype(jnp.float32)
        total = next_token_sums(hidden, head, targets.reshape(-1), weights)[0]
        return total / jnp.maximum(weights.sum(), 1)

    output: Any = model.apply({"params": params}, method=SmolVLM.tables)
    return jax.grad(loss, argnums=(0, 1, 2))(whole, whole, output[1])
