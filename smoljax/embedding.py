"""Pictures and texts as vectors of one space: the decoder's last hidden state, as the contrastive loss trains it.

A picture is read as `<|im_start|>User:{picture tokens}<end_of_utterance>`, a text as
`<|im_start|>User: {text}<end_of_utterance>`; the final hidden state of the last token, at unit length, is the
vector, so the dot product of two is their cosine. With another chat template it is that template's user turn, up to
the token that ends the turn; with none (a base model) the bare picture or text.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation.buckets import PROMPT_BUCKETS, round_up
from smoljax.nn.smolvlm import forward
from smoljax.processing.images import ImageInput
from smoljax.processing.processor import Batch, Processor, Sample
from smoljax.processing.tokenizer import IMAGE_TOKEN
from smoljax.vlm import VLM


def embed_images(
    vlm: VLM,
    images: Sequence[ImageInput],
    batch_size: int = 32,
    *,
    longest_edge: int | None = None,
    split: bool | None = None,
) -> np.ndarray:
    """The vectors of pictures.

    Args:
      vlm: a loaded model that sees.
      images: paths, PIL pictures or uint8 arrays [h, w, 3].
      batch_size: pictures that go through the decoder together.
      longest_edge, split: as in `Processor.__call__`.

    Returns:
      [n, D] float32, unit length.

    Raises:
      UsageError: a text-only model, or more tokens than it has positions.
      SmoljaxError: a picture is broken, or a vector is not finite.
    """
    processor = vlm.require_processor()
    if processor.config.image is None:
        raise UsageError("this is a text-only model: it takes no pictures")

    def read(chunk: Sequence[Any]) -> Batch:
        samples = [_turn(processor, {"type": "image"}, image) for image in chunk]
        return processor.batch(
            samples,
            padding_side="right",
            longest_edge=longest_edge,
            split=split,
            add_generation_prompt=False,
        )

    return _embed(vlm, list(images), batch_size, read)


def embed_texts(vlm: VLM, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """The vectors of texts: [n, D] float32, unit length; arguments and errors as for `embed_images`.

    Raises:
      UsageError: a text is empty, or longer than the model's positions.
    """
    processor = vlm.require_processor()
    for place, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"text {place} is empty")
        if IMAGE_TOKEN in text and processor.config.image is not None:
            raise UsageError(f"text {place} holds {IMAGE_TOKEN}: a text's vector sees no picture")
    order = sorted(
        range(len(texts)), key=lambda place: len(texts[place])
    )  # so that rows pad each other little

    def read(chunk: Sequence[Any]) -> Batch:
        samples = [_turn(processor, {"type": "text", "text": text}) for text in chunk]
        return processor.batch(samples, padding_side="right", add_generation_prompt=False)

    found = _embed(vlm, [texts[place] for place in order], batch_size, read)
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors


def _turn(processor: Processor, item: dict[str, str], image: ImageInput | None = None) -> Sample:
    sample = Sample() if image is None else Sample(images=[image])
    if processor.config.chat_template is None:
        sample["text"] = item.get("text", IMAGE_TOKEN)
    else:
        sample["messages"] = [{"role": "user", "content": [item]}]
    return sample


def _embed(
    vlm: VLM, inputs: Sequence[Any], batch_size: int, read: Callable[[Sequence[Any]], Batch]
) -> np.ndarray:
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
    vectors = [np.empty((0, vlm.config.text.hidden_size), np.float32)]
    for start in range(0, len(inputs), batch_size):
        batch = read(inputs[start : start + batch_size])
        vlm.generator.check(batch.arrays())
        last = _turn_ends(batch, vlm.require_processor().stop_ids)
        vectors.append(_vectors(vlm, batch, last, min(batch_size, 1 << (len(inputs) - 1).bit_length())))
    found = np.concatenate(vectors)
    if not np.isfinite(found).all():
        raise SmoljaxError("a vector is not finite: weights or pictures hold NaN or infinity")
    return found


def _turn_ends(batch: Batch, stop_ids: Sequence[int]) -> np.ndarray:
    """[B] int32: the last token that ends a turn, else the last real one (rows are padded on the right)."""
    lengths = batch.attention_mask.sum(axis=-1)
    ends = np.isin(batch.input_ids, stop_ids) & batch.attention_mask
    backwards = np.argmax(ends[:, ::-1], axis=-1)
    return np.where(ends.any(axis=-1), ends.shape[1] - 1 - backwards, lengths - 1).astype(np.int32)


def _vectors(vlm: VLM, batch: Batch, last: np.ndarray, rows: int) -> np.ndarray:
    """Pads to static shapes, runs the model, and gives back the vectors of the real rows."""
    # What comes behind a turn's end (a newline) is not needed; the length that is decides the bucket.
    count, needed = len(last), int(last.max()) + 1
    length = round_up(needed, PROMPT_BUCKETS, vlm.config.text.max_positions)
    ids = np.full((rows, length), vlm.require_processor().pad_id, np.int32)
    ids[:count, :needed] = batch.input_ids[:, :needed]
    mask = np.arange(length) <= np.pad(last, (0, rows - count))[:, None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if batch.pixel_values is not None:
        assert batch.tile_mask is not None
        room = -(
            -length // vlm.config.image_seq_len
        )  # as many tiles as such a prompt can hold: one shape a bucket
        features = vlm.generator.encode_images(batch.arrays(), max(room, batch.tile_mask.shape[1]))
        inputs["image_features"] = jnp.pad(features, ((0, rows - count), (0, 0), (0, 0), (0, 0)))
        inputs["tile_mask"] = np.zeros(inputs["image_features"].shape[:2], bool)
        inputs["tile_mask"][:count, : batch.tile_mask.shape[1]] = batch.tile_mask
    return np.asarray(_program(vlm.config, vlm.packed, inputs, np.pad(last, (0, rows - count))))[:count]


@partial(jax.jit, static_argnums=0)
def _program(
    config: SmolVLMConfig, params: Any, inputs: dict[str, Array], last: Int[Array, " B"]
) -> Float[Array, "B D"]:
    hidden = forward(config, params, inputs, logits="none").hidden
    seats = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return seats / jnp.maximum(jnp.linalg.norm(seats, axis=-1, keepdims=True), 1e-12)
