"""From a config to what the step needs of each objective: own parameters, counts, and sums."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError
from smoljax.training.config import Contrastive, Dense, Distill, NextToken, Objective
from smoljax.training.objectives import contrastive, dense, distillation, next_token

Sums = dict[str, tuple[jax.Array, jax.Array]]

#: The measure that counts a batch's contrastive pairs.
PAIRS = "contrastive_pairs"


@dataclass(frozen=True)
class Seen:
    """What one forward pass gives the objectives.

    Attributes:
      patches: [B, I, P, E], the patch encoder's output, None without pictures.
      hidden: [B, T, D] after the final norm, None where no objective reads it.
      head: [V, D], the output table.
      teacher: the same of the teacher (hidden, head), None without one.
    """

    patches: Any
    hidden: Any
    head: Any
    teacher: "Seen | None" = None


def needs_decoder(objectives: tuple[Objective, ...]) -> bool:
    """Whether any objective reads hidden states."""
    return any(not isinstance(objective, Dense) for objective in objectives)


def init_objectives(
    objectives: tuple[Objective, ...],
    config: SmolVLMConfig,
    key: jax.Array,
    teacher: SmolVLMConfig | None,
) -> dict[str, Any]:
    """Parameters that belong to objectives and not to the model, by objective."""
    made: dict[str, Any] = {}
    for objective in objectives:
        key, own = jax.random.split(key)
        if isinstance(objective, Contrastive):
            made["contrastive"] = {"log_scale": jnp.log(jnp.float32(objective.scale))}
            if objective.kind == "sigmoid":
                made["contrastive"]["bias"] = jnp.float32(objective.bias)
        elif isinstance(objective, Dense):
            if config.vision is None:
                raise SmoljaxError("the dense objective needs a model with a vision part")
            E = config.vision.hidden_size
            made["dense"] = {
                name: {
                    "kernel": jax.random.normal(jax.random.fold_in(own, index), (E, classes)) * E**-0.5,
                    "bias": jnp.zeros(classes),
                }
                for index, (name, classes) in enumerate(objective.labels)
            }
        elif isinstance(objective, Distill) and objective.hidden:
            assert teacher is not None
            D, Dt = config.text.hidden_size, teacher.text.hidden_size
            made["distill"] = {"projection": jax.random.normal(own, (D, Dt)) * D**-0.5}
    return made


def count(objective: Objective, batch: Mapping[str, Any]) -> jax.Array:
    """What the objective's sum is divided by; a function of the data alone, at least a tiny number.

    Raises:
      SmoljaxError: the batch lacks labels that the objective reads.
    """
    if isinstance(objective, NextToken):
        weights = _learned(objective, batch)[1]
        return jnp.where(weights.sum() > 0, weights.sum(), 1.0)
    if isinstance(objective, Distill):
        mask = next_token.shift(batch["input_ids"], batch["loss_mask"], batch.get("positions"))[1]
        return jnp.maximum(mask.sum(), 1).astype(jnp.float32)
    if isinstance(objective, Contrastive):
        valid = (batch["pair_image"] >= 0) & (batch["pair_text"] >= 0)
        return jnp.maximum(valid.sum(), 1).astype(jnp.float32)
    total = jnp.float32(0)
    for name, _ in objective.labels:
        total += jnp.sum(dense.patch_weights(_labels(name, batch), objective.object_weight))
    return jnp.maximum(total / len(objective.labels), 1.0)


def sums(
    objective: Objective, own: Mapping[str, Any], seen: Seen, batch: Mapping[str, Any]
) -> tuple[jax.Array, Sums]:
    """The objective summed over the batch, and measures as (sum, count) pairs for the log.

    Raises:
      SmoljaxError: the batch lacks what the objective reads.
    """
    if isinstance(objective, Dense):
        return _dense(objective, own, seen, batch)
    if isinstance(objective, Contrastive):
        image, has_image = contrastive.gather(seen.hidden, batch["pair_image"])
        text, has_text = contrastive.gather(seen.hidden, batch["pair_text"])
        valid = has_image & has_text
        if objective.kind == "sigmoid":
            total = contrastive.sigmoid_loss(image, text, valid, own["log_scale"], own["bias"])
        else:
            total = contrastive.infonce_loss(image, text, valid, own["log_scale"])
        return total, {
            "contrastive_scale": (jnp.exp(own["log_scale"]), jnp.float32(1)),
            PAIRS: (valid.sum().astype(jnp.float32), jnp.float32(1)),
        }
    hidden = seen.hidden.reshape(-1, seen.hidden.shape[-1])
    if isinstance(objective, NextToken):
        targets, weights = (item.reshape(-1) for item in _learned(objective, batch))
        total, right = next_token.next_token_sums(
            hidden, seen.head, targets, weights, chunk=objective.chunk, z_loss=objective.z_loss
        )
        return total, {"token_accuracy": (right, jnp.sum(weights > 0).astype(jnp.float32))}
    _, mask = next_token.shift(batch["input_ids"], batch["loss_mask"], batch.get("positions"))
    mask = mask.reshape(-1)
    assert seen.teacher is not None
    taught = seen.teacher.hidden.reshape(-1, seen.teacher.hidden.shape[-1])
    total = distillation.kl_sum(
        hidden,
        seen.head,
        taught,
        seen.teacher.head,
        mask,
        temperature=objective.temperature,
        chunk=objective.chunk,
    )
    if objective.hidden:
        total += objective.hidden * distillation.hidden_sum(hidden, taught, own["projection"], mask)
    return total, {}


def _learned(objective: NextToken, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Targets [B, T] and their weights [B, T]."""
    targets, mask = next_token.shift(batch["input_ids"], batch["loss_mask"], batch.get("positions"))
    weights = next_token.balanced_weights(mask, batch["segment_ids"], batch["branch_ids"], objective.balance)
    return targets, weights


def _labels(name: str, batch: Mapping[str, Any]) -> jax.Array:
    if name not in batch["patches"]:
        raise SmoljaxError(
            f"the dense objective wants labels {name!r}, which the data do not have; for scenes give the source "
            'the option "dense": True'
        )
    return batch["patches"][name]


def _dense(
    objective: Dense, own: Mapping[str, Any], seen: Seen, batch: Mapping[str, Any]
) -> tuple[jax.Array, Sums]:
    total, found = jnp.float32(0), {}
    factors = objective.label_weights or (1.0,) * len(objective.labels)
    for (name, _), factor in zip(objective.labels, factors, strict=True):
        head = own[name]
        loss, right, shown = dense.dense_sums(
            seen.patches, head["kernel"], head["bias"], _labels(name, batch), objective.object_weight
        )
        total += factor * loss / len(objective.labels)
        found[f"dense_{name}"] = (right.astype(jnp.float32), shown.astype(jnp.float32))
    return total, found
