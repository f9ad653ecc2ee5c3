"""How much every part of the prompt, each place of each picture above all, contributed to an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.buckets import PROMPT_BUCKETS, round_up
from smoljax.grounding import maps, programs, vision_programs
from smoljax.nn.smolvlm import picture_params
from smoljax.processing.processor import Batch
from smoljax.vlm import VLM

_ANSWER_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Relevance:
    """Where an answer comes from.

    Attributes:
      log_odds: the score that is explained, the sum of log p − log(1 − p) over the answer's tokens.
      tokens: [T] float32, at least 0: relevance of every token of the prompt, padding left out.
      maps: one a picture, [rows, cols] float32 over the whole picture: image tokens (or patches) of all its tiles
        put together; their sum is the relevance of the picture's tokens.
    """

    log_odds: float
    tokens: np.ndarray
    maps: tuple[np.ndarray, ...]

    @property
    def picture_share(self) -> float:
        """Which part of all relevance lies on the pictures, 0 to 1."""
        total = float(self.tokens.sum())
        return sum(float(cells.sum()) for cells in self.maps) / total if total > 0 else 0.0

    def heat(self, width: int, height: int, picture: int = 0) -> np.ndarray:
        """The map over a picture of this size in pixels: [height, width] float32, 0 to 1 (`maps.spread`)."""
        return maps.spread(self.maps[picture], width, height)

    def peak(self, width: int, height: int, picture: int = 0) -> tuple[float, float]:
        """The point, x and y in pixels, where the map over a picture of this size is greatest."""
        return maps.peak(self.maps[picture], width, height)


def relevance(
    vlm: VLM,
    batch: Batch | Mapping[str, np.ndarray],
    answer_ids: Sequence[int],
    *,
    targets: Sequence[int] | None = None,
    grids: Sequence[Sequence[maps.Grid]] | None = None,
    patches: bool = False,
) -> Relevance:
    """The relevance of one row's prompt for an answer: `relevances` for one row."""
    wanted = None if targets is None else [targets]
    return relevances(vlm, batch, [answer_ids], targets=wanted, grids=grids, patches=patches)[0]


def relevances(
    vlm: VLM,
    batch: Batch | Mapping[str, np.ndarray],
    answers: Sequence[Sequence[int]],
    *,
    targets: Sequence[Sequence[int]] | None = None,
    grids: Sequence[Sequence[maps.Grid]] | None = None,
    patches: bool = False,
) -> list[Relevance]:
    """Gradient-weighted attention, rolled out from the answer's tokens to the prompt's (Chefer et al. 2021).

    Works for any checkpoint. Costs about three forward passes; memory of one layer's attention at a time.

    Args:
      vlm: a loaded model.
      batch: prompts, padded on the left: what `vlm.prepare` or `Processor.batch` gives, or its arrays.
      answers: the token ids of each row's answer, generated or not.
      targets: which tokens of each answer count, by their place in it; all by default.
      grids: (rows, cols) of each row's pictures; taken from a `Batch`. For bare arrays every tile is a picture of its
        own unless they are given.
      patches: go on through the patch encoder: maps of single patches, scale_factor times finer each way.

    Raises:
      UsageError: rows and answers differ in number, an answer is empty, a target outside it, or too many tokens; or the
        model's image tokens are not causal.
      SmoljaxError: the scores are not numbers.
    """
    if isinstance(batch, Batch):
        grids = batch.grids if grids is None else grids
        batch = batch.arrays()
    # However the model is run, its layers are taken one by one here: one set of programs.
    config = vlm.config.with_compute(scan_layers=False, remat="none")
    if config.sharing.image_attention != "causal":
        raise UsageError(
            "relevance maps follow attention through one causal sequence of words and image tokens; this model's "
            f"image attention is {config.sharing.image_attention}"
        )
    rows = len(batch["input_ids"])
    _check(answers, targets, rows)
    vlm.generator.check(batch, max(len(answer) for answer in answers))
    inputs = _inputs(vlm, batch, answers, targets)
    found = _decoder_pass(config, vlm.packed, inputs)
    if not np.isfinite(found.scores).all():
        raise SmoljaxError(
            "the model's scores are not finite numbers: weights or pictures hold NaN or infinity"
        )
    ids, mask = np.asarray(inputs.prompt["input_ids"]), np.asarray(inputs.prompt["attention_mask"])
    counts = [0] * rows if "pixel_values" not in batch else batch["tile_mask"].sum(axis=-1).tolist()
    if grids is None:
        grids = [[(0, 0)] * count for count in counts]
    seats = [found.relevance[b][mask[b] & (ids[b] == config.image_token_id)] for b in range(rows)]
    side = round(config.image_seq_len**0.5)
    tiles = [values.reshape(-1, side, side) for values in seats] if any(counts) else None
    if patches and tiles is not None:
        tiles = _through_vision(config, vlm.packed, batch, inputs, found, seats)
    return [
        Relevance(
            log_odds=float(found.scores[b]),
            tokens=found.relevance[b][mask[b]],
            maps=() if tiles is None else tuple(maps.picture_maps(tiles[b], grids[b])),
        )
        for b in range(rows)
    ]


@dataclass(frozen=True)
class _Inputs:
    """Static shapes: prompts padded on the left, answers on the right."""

    prompt: dict[str, Any]
    answers: np.ndarray
    real: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class _Found:
    """What the decoder's backward pass leaves at its input; the prompt's places alone."""

    scores: np.ndarray
    gradient: jax.Array
    relevance: np.ndarray


def _check(answers: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None, rows: int) -> None:
    if len(answers) != rows or (targets is not None and len(targets) != rows):
        raise UsageError(f"{rows} prompts need as many answers (and targets), not {len(answers)}")
    for row, answer in enumerate(answers):
        if not len(answer):
            raise UsageError(f"row {row}: the answer to explain is empty")
        wanted = range(len(answer)) if targets is None else targets[row]
        if not len(wanted) or min(wanted) < 0 or max(wanted) >= len(answer):
            raise UsageError(f"row {row}: targets must be places in an answer of {len(answer)} tokens")


def _inputs(
    vlm: VLM,
    batch: Mapping[str, np.ndarray],
    answers: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None,
) -> _Inputs:
    limit = vlm.config.text.max_positions
    ids = np.asarray(batch["input_ids"], np.int32)
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), bool)
    extra = round_up(ids.shape[1], PROMPT_BUCKETS, limit) - ids.shape[1]
    prompt: dict[str, Any] = {
        "input_ids": jnp.asarray(np.pad(ids, ((0, 0), (extra, 0)))),
        "attention_mask": np.pad(mask, ((0, 0), (extra, 0))),
    }
    if "pixel_values" in batch:
        prompt["image_features"] = vlm.generator.encode_images(batch)
        prompt["tile_mask"] = jnp.asarray(batch["tile_mask"])
    room = round_up(max(len(answer) for answer in answers), _ANSWER_BUCKETS, limit)
    padded = np.zeros((len(answers), room), np.int32)
    real, counted = np.zeros(padded.shape, bool), np.zeros(padded.shape, bool)
    for row, answer in enumerate(answers):
        padded[row, : len(answer)] = answer
        real[row, : len(answer)] = True
        counted[row, list(range(len(answer)) if targets is None else targets[row])] = True
    return _Inputs(prompt, padded, real, counted)


def _decoder_pass(config: SmolVLMConfig, params: Mapping[str, Any], inputs: _Inputs) -> _Found:
    """Forwards with the input of every layer kept, then backwards layer by layer."""
    words = {"input_ids": jnp.asarray(inputs.answers)}  # an <image> in an answer is a word, as in decoding
    fed = {key: value for key, value in inputs.prompt.items() if key != "attention_mask"}
    x = jnp.concatenate([programs.embed(config, params, fed), programs.embed(config, params, words)], axis=1)
    mask = jnp.asarray(np.concatenate([inputs.prompt["attention_mask"], inputs.real], axis=1))
    layers = [programs.layer_params(params["decoder"], i) for i in range(config.text.num_layers)]
    kept = []
    for layer in layers:
        kept.append(x)
        x = programs.decoder_layer(config, layer, x, mask)
    length = inputs.prompt["attention_mask"].shape[1]
    places = np.broadcast_to(length - 1 + np.arange(inputs.answers.shape[1]), inputs.answers.shape)
    scores, gradient = programs.score_gradient(config, params, x, places, inputs.answers, inputs.counted)
    start = np.zeros(mask.shape, np.float32)
    np.put_along_axis(start, places, inputs.counted / inputs.counted.sum(axis=1, keepdims=True), axis=1)
    found = jnp.asarray(start)
    for layer, fed_to in zip(reversed(layers), reversed(kept), strict=True):
        gradient, found = programs.decoder_layer_back(config, layer, fed_to, gradient, found, mask)
    tokens = (np.asarray(found) - start)[
        :, :length
    ]  # without the identity's part: the asking places themselves
    return _Found(np.asarray(scores), gradient[:, :length], tokens)


def _through_vision(
    config: SmolVLMConfig,
    params: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    inputs: _Inputs,
    found: _Found,
    seats: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """For every row [tiles, n, n], the relevance of its patches."""
    vision = config.vision
    assert vision is not None
    if batch.get("pixel_attention_mask") is not None:
        raise UsageError("patches=True takes full tiles only, without pixel_attention_mask")
    fed = {key: value for key, value in inputs.prompt.items() if key != "attention_mask"}
    gradients = np.asarray(programs.image_gradient(config, params, fed, found.gradient))
    places = np.argwhere(np.asarray(batch["tile_mask"]))
    tokens = np.concatenate(seats).reshape(len(places), -1)
    size = max(
        1, 2048 // vision.num_patches
    )  # bounds memory: attention weights of two tiles of 1,024 patches
    parts = []
    for start in range(0, len(places), size):
        rows, tiles = places[start : start + size].T
        filled = [
            _filled(values, size)
            for values in (batch["pixel_values"][rows, tiles], gradients[rows, tiles], tokens[start:][:size])
        ]
        parts.append(_vision_pass(config, params, *filled)[: len(rows)])
    patches = np.concatenate(parts).reshape(-1, vision.grid, vision.grid)
    return np.split(patches, np.cumsum([np.sum(row) for row in batch["tile_mask"]])[:-1])


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _vision_pass(
    config: SmolVLMConfig, params: Mapping[str, Any], pixels: np.ndarray, gradient: Any, relevance: Any
) -> np.ndarray:
    """Tiles [X, 3, h, w], gradients [X, Q, D] and relevance [X, Q] of their tokens → relevance [X, P] of patches."""
    part = params["vision"]
    assert config.vision is not None
    layers = [programs.layer_params(part, i) for i in range(config.vision.num_layers)]
    x, kept = vision_programs.patch_embedding(config, part, pixels), []
    for layer in layers:
        kept.append(x)
        x = vision_programs.encoder_layer(config, layer, x)
    own = {**picture_params(config, params), "vision": {"final_norm": part["final_norm"]}}
    gradient, relevance = vision_programs.connector_back(config, own, x, gradient, relevance)
    for layer, fed_to in zip(reversed(layers), reversed(kept), strict=True):
        gradient, relevance = vision_programs.encoder_layer_back(config, layer, fed_to, gradient, relevance)
    return np.asarray(relevance)
