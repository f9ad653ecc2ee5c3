"""From a config to what the step needs of each objective: own parameters, counts, and sums."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError
from smoljax.training.config import (
    BagOfWords,
    Commitment,
    Contrastive,
    Dense,
    Distill,
    GapPenalty,
    NextToken,
    Objective,
    SoftTie,
)
from smoljax.training.objectives import contrastive, dense, distillation, next_token, sharing

Sums = dict[str, tuple[jax.Array, jax.Array]]
Batch = Mapping[str, Any]

#: The measure that counts a batch's contrastive pairs.
PAIRS = "contrastive_pairs"


@dataclass(frozen=True)
class Seen:
    """What one forward pass gives the objectives.

    Attributes:
      patches: [B, I, P, E], the patch encoder's output, None without pictures.
      hidden: [B, T, D] after the final norm, None where no objective reads it.
      words: [V, D], the rows that words are looked up in.
      head: [V, D], the output table.
      embeddings: [B, T, D], the decoder's input, image tokens seated; None as `hidden`.
      is_image: [B, T] bool, which of those are image tokens.
      residual: [B, I, Q] of connectors that choose a row of a table, else None.
      teacher: the same of the teacher, None without one.
    """

    patches: Any
    hidden: Any
    words: Any
    head: Any
    embeddings: Any = None
    is_image: Any = None
    residual: Any = None
    teacher: "Seen | None" = None


@dataclass(frozen=True)
class Rule:
    """What one kind of objective is to the step.

    Attributes:
      count: (objective, batch) → what its sum is divided by; a function of the data alone, above 0.
      sums: (objective, own parameters, seen, batch) → its sum over the batch, and measures as (sum, count) pairs.
      init: (objective, model's config, key, teacher's config) → own parameters, {} for none.
    """

    count: Callable[[Any, Batch], jax.Array]
    sums: Callable[[Any, Mapping[str, Any], Seen, Batch], tuple[jax.Array, Sums]]
    init: Callable[[Any, SmolVLMConfig, jax.Array, SmolVLMConfig | None], dict[str, Any]] = (
        lambda objective, config, key, teacher: {}
    )


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
        if params := RULES[type(objective)].init(objective, config, own, teacher):
            made[objective.name] = params
    return made


def count(objective: Objective, batch: Batch) -> jax.Array:
    """What the objective's sum is divided by; a function of the data alone, at least a tiny number.

    Raises:
      SmoljaxError: the batch lacks labels that the objective reads.
    """
    return RULES[type(objective)].count(objective, batch)


def sums(objective: Objective, own: Mapping[str, Any], seen: Seen, batch: Batch) -> tuple[jax.Array, Sums]:
    """The objective summed over the batch, and measures as (sum, count) pairs for the log.

    Raises:
      SmoljaxError: the batch lacks what the objective reads.
    """
    return RULES[type(objective)].sums(objective, own, seen, batch)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _rows(objective: Objective, batch: Batch) -> jax.Array:
    return jnp.float32(batch["input_ids"].shape[0])


def _learned(balance: float, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Targets [B, T] and their weights [B, T]."""
    targets, mask = next_token.shift(batch["input_ids"], batch["loss_mask"], batch.get("positions"))
    weights = next_token.balanced_weights(mask, batch["segment_ids"], batch.get("branch_ids"), balance)
    return targets, weights


# Next token


def _next_token_count(objective: NextToken | BagOfWords, batch: Batch) -> jax.Array:
    weights = _learned(objective.balance, batch)[1]
    return jnp.where(weights.sum() > 0, weights.sum(), 1.0)


def _next_token(
    objective: NextToken, own: Mapping[str, Any], seen: Seen, batch: Batch
) -> tuple[jax.Array, Sums]:
    targets, weights = map(_flat, _learned(objective.balance, batch))
    total, right = next_token.next_token_sums(
        _flat(seen.hidden), seen.head, targets, weights, chunk=objective.chunk, z_loss=objective.z_loss
    )
    return total, {"token_accuracy": (right, jnp.sum(weights > 0).astype(jnp.float32))}


# Distillation


def _distill_init(
    objective: Distill, config: SmolVLMConfig, key: jax.Array, teacher: SmolVLMConfig | None
) -> dict[str, Any]:
    if not objective.hidden:
        return {}
    assert teacher is not None
    D, Dt = config.text.hidden_size, teacher.text.hidden_size
    return {"projection": jax.random.normal(key, (D, Dt)) * D**-0.5}


def _distill_count(objective: Distill, batch: Batch) -> jax.Array:
    return jnp.maximum((_learned(0.0, batch)[1] > 0).sum(), 1).astype(jnp.float32)


def _distill(objective: Distill, own: Mapping[str, Any], seen: Seen, batch: Batch) -> tuple[jax.Array, Sums]:
    mask = _flat(_learned(0.0, batch)[1] > 0)
    assert seen.teacher is not None
    hidden, taught = _flat(seen.hidden), _flat(seen.teacher.hidden)
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


# Contrastive


def _contrastive_init(
    objective: Contrastive, config: SmolVLMConfig, key: jax.Array, teacher: SmolVLMConfig | None
) -> dict[str, Any]:
    made = {"log_scale": jnp.log(jnp.float32(objective.scale))}
    if objective.kind == "sigmoid":
        made["bias"] = jnp.float32(objective.bias)
    return made


def _contrastive_count(objective: Contrastive, batch: Batch) -> jax.Array:
    valid = (batch["pair_image"] >= 0) & (batch["pair_text"] >= 0)
    return jnp.maximum(valid.sum(), 1).astype(jnp.float32)


def _contrastive(
    objective: Contrastive, own: Mapping[str, Any], seen: Seen, batch: Batch
) -> tuple[jax.Array, Sums]:
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


# Dense labels


def _dense_init(
    objective: Dense, config: SmolVLMConfig, key: jax.Array, teacher: SmolVLMConfig | None
) -> dict[str, Any]:
    if config.vision is None:
        raise SmoljaxError("the dense objective needs a model with a vision part")
    E = config.vision.hidden_size
    return {
        name: {
            "kernel": jax.random.normal(jax.random.fold_in(key, index), (E, classes)) * E**-0.5,
            "bias": jnp.zeros(classes),
        }
        for index, (name, classes) in enumerate(objective.labels)
    }


def _dense_count(objective: Dense, batch: Batch) -> jax.Array:
    total = jnp.float32(0)
    for name, _ in objective.labels:
        total += jnp.sum(dense.patch_weights(_labels(name, batch), objective.object_weight))
    return jnp.maximum(total / len(objective.labels), 1.0)


def _labels(name: str, batch: Batch) -> jax.Array:
    if name not in batch["patches"]:
        raise SmoljaxError(
            f"the dense objective wants labels {name!r}, which the data do not have; for scenes give the source "
            'the option "dense": True'
        )
    return batch["patches"][name]


def _dense(objective: Dense, own: Mapping[str, Any], seen: Seen, batch: Batch) -> tuple[jax.Array, Sums]:
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


# The shared space


def _bag_of_words(
    objective: BagOfWords, own: Mapping[str, Any], seen: Seen, batch: Batch
) -> tuple[jax.Array, Sums]:
    targets, weights = _learned(objective.balance, batch)
    total = sharing.bag_of_words_sum(
        seen.embeddings,
        seen.is_image,
        seen.words,
        targets,
        weights,
        batch["segment_ids"],
        chunk=objective.chunk,
    )
    return total, {}


def _gap(objective: GapPenalty, own: Mapping[str, Any], seen: Seen, batch: Batch) -> tuple[jax.Array, Sums]:
    is_word = (batch["segment_ids"] > 0) & ~seen.is_image
    gap = sharing.centroid_gap(seen.embeddings, seen.is_image, is_word)
    return gap * _rows(objective, batch), {}


def _soft_tie(objective: SoftTie, own: Mapping[str, Any], seen: Seen, batch: Batch) -> tuple[jax.Array, Sums]:
    if seen.words is seen.head:
        raise SmoljaxError("the soft_tie objective needs two tables; this model's is tied")
    return sharing.tie_distance(seen.words, seen.head) * _rows(objective, batch), {}


def _commitment_count(objective: Commitment, batch: Batch) -> jax.Array:
    if "tile_mask" not in batch:
        raise SmoljaxError("the commitment objective needs a model with a vision part")
    return jnp.maximum(batch["tile_mask"].sum(), 1).astype(jnp.float32)


def _commitment(
    objective: Commitment, own: Mapping[str, Any], seen: Seen, batch: Batch
) -> tuple[jax.Array, Sums]:
    if seen.residual is None:
        raise SmoljaxError("the commitment objective needs a connector that chooses rows (nearest_word)")
    return jnp.sum(jnp.where(batch["tile_mask"], seen.residual.mean(axis=-1), 0)), {}


RULES: dict[type, Rule] = {
    NextToken: Rule(_next_token_count, _next_token),
    Contrastive: Rule(_contrastive_count, _contrastive, _contrastive_init),
    Dense: Rule(_dense_count, _dense, _dense_init),
    Distill: Rule(_distill_count, _distill, _distill_init),
    BagOfWords: Rule(_next_token_count, _bag_of_words),
    GapPenalty: Rule(_rows, _gap),
    SoftTie: Rule(_rows, _soft_tie),
    Commitment: Rule(_commitment_count, _commitment),
}
