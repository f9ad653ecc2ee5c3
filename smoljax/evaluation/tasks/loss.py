"""How well a model predicts the answers word by word: mean completion loss and perplexity."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.data.config import LossOn
from smoljax.data.encode import Example, encode
from smoljax.data.records import Record, Source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.samples import blinded, picture_name
from smoljax.evaluation.tasks.ask import Tally, quiet, usable
from smoljax.nn.smolvlm import SmolVLM, apply, forward
from smoljax.vlm import VLM

_AT_ONCE = 128  # examples that are sorted by length together
_TARGETS = 256  # positions whose scores exist at a time
_LENGTH_STEP = 128


def loss(
    vlm: VLM,
    source: Source,
    config: EvalConfig,
    progress: Progress = quiet,
    loss_on: LossOn = "answers",
) -> Result:
    """The mean negative log-probability of the learned tokens, in nats.

    Args:
      vlm: the model.
      source: records; all their conversations are read, the pictures once (`smoljax.data.encode.encode`).
      config: how; intervals are by picture.
      progress: told of every record done.
      loss_on: "answers", or "smolvlm2" as training counts it by default.

    Returns:
      Metrics "loss" (n = learned tokens) and "perplexity", its exponential.

    Raises:
      SmoljaxError: a record cannot be encoded; the loss is not a number.
    """
    tally = Tally(config)
    predictions: list[dict[str, Any]] = []
    pending: list[tuple[str, str, Example]] = []
    processor = vlm.require_processor()
    limit = vlm.config.text.max_positions

    def flush() -> None:
        order = sorted(range(len(pending)), key=lambda place: pending[place][2].tokens)
        rows = config.batch_size or max(1, min(32, 4096 // max(1, pending[order[-1]][2].tokens)))
        found = np.zeros((len(pending), 2))
        for start in range(0, len(order), rows):
            group = order[start : start + rows]
            found[group] = _sums(vlm, [pending[place][2] for place in group], rows)
        for (name, picture, _), counts in zip(pending, found, strict=True):
            if not np.isfinite(counts).all():
                raise SmoljaxError(
                    f"record {name}: the loss is not a number; the weights hold NaN or infinity"
                )
            tally.add("loss", picture or f"#{len(predictions)}", counts)
            mean = float(counts[0] / counts[1]) if counts[1] else None
            predictions.append({"id": name, "loss": mean, "tokens": int(counts[1])})
        pending.clear()

    def example_of(record: Record) -> tuple[str, str, Example]:
        record = dataclasses.replace(record, caption=None, patches={})  # neither is read here
        if config.blind:
            record = dataclasses.replace(record, images=blinded(record.images))
        example = encode(
            record,
            processor,
            loss_on=loss_on,
            longest_edge=config.longest_edge,
            split=config.split,
        )
        if example.positions.max() >= limit:
            raise SmoljaxError(f"record {record.id}: longer than the model's {limit} positions")
        return record.id, picture_name(record), example

    for _, found in usable(source, config, example_of, progress):
        pending.append(found)
        if len(pending) == _AT_ONCE:
            flush()
    if pending:
        flush()
    tokens = sum(line["tokens"] for line in predictions)
    if not tokens:
        raise SmoljaxError("the data holds no answer to predict")
    mean = tally.ratio("loss", _mean)
    metrics = {
        "loss": dataclasses.replace(mean, n=tokens),
        "perplexity": dataclasses.replace(tally.ratio("loss", lambda sums: np.exp(_mean(sums))), n=tokens),
    }
    return Result("loss", len(predictions), metrics, predictions)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _sums(vlm: VLM, examples: Sequence[Example], rows: int) -> np.ndarray:
    """[len(examples), 2] float64: summed loss and number of targets of each."""
    length = -(-max(example.tokens for example in examples) // _LENGTH_STEP) * _LENGTH_STEP
    batch: dict[str, Any] = {
        name: np.zeros((rows, length), np.int32) for name in ("input_ids", "positions", "branch_ids")
    }
    batch["attention_mask"] = np.zeros((rows, length), bool)
    learned = np.zeros((rows, length), bool)
    for row, example in enumerate(examples):
        for name in ("input_ids", "positions", "branch_ids"):
            batch[name][row, : example.tokens] = getattr(example, name)
        batch["attention_mask"][row, : example.tokens] = True
        learned[row, : example.tokens] = example.loss_mask
    most = 1 << (max(example.tiles for example in examples) - 1).bit_length()
    if any(example.tiles for example in examples):
        pixels = np.zeros((rows, most, *examples[0].pixel_values.shape[1:]), np.float32)
        batch["tile_mask"] = np.zeros((rows, most), bool)
        for row, example in enumerate(examples):
            pixels[row, : example.tiles] = example.pixel_values
            batch["tile_mask"][row, : example.tiles] = True
        batch["image_features"] = vlm.generator.encode_images(
            {"pixel_values": pixels, "tile_mask": batch["tile_mask"]}
        )
    where = np.argwhere(learned)
    count = _TARGETS << (max(0, len(where) - 1) // _TARGETS).bit_length()  # few shapes
    row, place = np.zeros((2, count), np.int32)
    row[: len(where)], place[: len(where)] = where.T
    place[len(where) :] = 1
    each = np.asarray(
        _program(vlm.config, vlm.packed, batch, row, place - 1, batch["input_ids"][row, place]), np.float64
    )
    each = each[: len(where)]
    rows_of = where[:, 0]
    sums = np.bincount(rows_of, each, minlength=len(examples))
    return np.stack([sums, np.bincount(rows_of, minlength=len(examples))], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _program(
    config: SmolVLMConfig, params: Any, batch: dict[str, Any], row: Any, place: Any, target: Any
) -> jax.Array:
    """Loss [n] of each target, predicted from the position before it; scores exist for 256 of them at a time."""
    hidden = forward(config, params, batch, logits="none").hidden[row, place]

    def part(chunk: tuple[Any, Any]) -> jax.Array:
        states, words = chunk
        scores = apply(config, params, states, method=SmolVLM.logits)
        return jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, words[:, None], axis=-1)[:, 0]

    chunks = (hidden.reshape(-1, _TARGETS, hidden.shape[-1]), target.reshape(-1, _TARGETS))
    return jax.lax.map(part, chunks).reshape(-1)
