"""What a model makes of pictures and texts, layer by layer: the arrays that the other measurements take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError
from smoljax.generation.buckets import PROMPT_BUCKETS, round_up
from smoljax.nn.smolvlm import SmolVLM, forward
from smoljax.processing.images import ImageInput
from smoljax.processing.processor import Sample
from smoljax.vlm import VLM


@dataclass(frozen=True)
class Captured:
    """Pictures alone and texts alone, as the decoder sees them; float32.

    Attributes:
      image: [L + 1, N, Q, D] image tokens of N pictures of one tile each: the decoder's input, then each layer's
        output, before the final norm. Where they do not pass through the decoder (cross-attention): [1, N, Q, D].
      text: [L + 1, M, D] the texts' own tokens, without those of the template around them.
      text_ids: [M] their ids.
      text_items: [M] which text each belongs to.
      words: [V, D], the rows that ids are looked up in.
      head: [V, D], the rows that logits are products with.
      norm: [D], the scale of the final norm.
      codes: [N, Q, K] of connectors that mix or choose rows of a table, else None.
    """

    image: np.ndarray
    text: np.ndarray
    text_ids: np.ndarray
    text_items: np.ndarray
    words: np.ndarray
    head: np.ndarray
    norm: np.ndarray
    codes: np.ndarray | None

    def pooled(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean image token of each picture and mean token of each text at a layer, [N, D] each."""
        count = int(self.text_items.max()) + 1
        total = np.zeros((count, self.text.shape[-1]))
        np.add.at(total, self.text_items, self.text[layer])
        number = np.bincount(self.text_items, minlength=count)[:, None]
        return self.image[layer].astype(np.float64).mean(1), total / np.maximum(number, 1)

    def normed(self, layer: int, eps: float) -> np.ndarray:
        """[N, Q, D] float32: image tokens after the final norm; the logit lens is their products with `head`."""
        x = self.image[layer]
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * self.norm


def capture(
    vlm: VLM,
    images: Sequence[ImageInput],
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    longest_edge: int | None = None,
) -> Captured:
    """Runs pictures and texts through a model, each in a user turn of its own.

    Args:
      vlm: any loaded model that sees.
      images: one tile each: pictures are not split.
      texts: as many, if `Captured.pooled` is to pair them.
      batch_size: of a forward pass; the same shape every time.
      longest_edge: pixels of the longer side, in place of the checkpoint's; by default one tile's.

    Raises:
      UsageError: a text-only model, or nothing to run.
    """
    processor = vlm.require_processor()
    if processor.config.image is None:
        raise UsageError("this is a text-only model: it has no image tokens")
    if not images or not texts:
        raise UsageError("capture needs at least one picture and one text")
    edge = longest_edge or processor.config.image.tile_size
    seen: list[dict[str, np.ndarray]] = []
    for start in range(0, len(images), batch_size):
        some = [Sample(images=[image]) for image in images[start : start + batch_size]]
        for sample in some:
            _say(vlm, sample, {"type": "image"})
        fed = processor.batch(
            some, padding_side="right", add_generation_prompt=False, longest_edge=edge, split=False
        ).arrays()
        seen.append(_run(vlm, fed, batch_size, len(some)))
    read: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(texts), batch_size):
        some = [Sample() for _ in texts[start : start + batch_size]]
        for sample, text in zip(some, texts[start : start + batch_size], strict=True):
            _say(vlm, sample, {"type": "text", "text": text})
        fed = processor.batch(some, padding_side="right", add_generation_prompt=False).arrays()
        states = _run(vlm, fed, batch_size, len(some))["states"]
        own = _own_tokens(vlm, fed, texts[start : start + batch_size])
        for row, place in zip(*np.nonzero(own), strict=True):
            read.append((states[:, row, place], fed["input_ids"][row, place], np.array(start + row)))
    tables = SmolVLM(vlm.config).apply({"params": vlm.params}, method=SmolVLM.tables)
    words, head = (np.asarray(table, np.float32) for table in tables)
    image = np.concatenate([part["image"] for part in seen], axis=1)
    return Captured(
        image=image,
        text=np.stack([item[0] for item in read], axis=1),
        text_ids=np.array([item[1] for item in read]),
        text_items=np.array([item[2] for item in read]),
        words=words,
        head=head,
        norm=np.asarray(vlm.params["decoder"]["final_norm"]["scale"], np.float32),
        codes=np.concatenate([part["codes"] for part in seen]) if "codes" in seen[0] else None,
    )


def _say(vlm: VLM, sample: Sample, item: dict[str, str]) -> None:
    """Puts one thing into a user turn, or bare where the model has no template."""
    if vlm.require_processor().config.chat_template is None:
        sample["text"] = item.get("text", "<image>")
    else:
        sample["messages"] = [{"role": "user", "content": [item]}]


def _own_tokens(vlm: VLM, fed: dict[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """[B, T] bool: the tokens that texts have in common with themselves outside the template."""
    tokenizer = vlm.require_processor().tokenizer
    own = np.zeros(fed["input_ids"].shape, bool)
    for row, text in enumerate(texts):
        ids, real = fed["input_ids"][row], fed["attention_mask"][row]
        # After a template the first word has a blank before it, so its token is another; the rest is compared.
        wanted, length = list(tokenizer.encode(f" {text}")), int(real.sum())
        places = [
            start
            for skip in (0, 1)  # the whole, else all but its first token
            for start in range(length - len(wanted) + 1)
            if len(wanted) > skip and ids[start + skip : start + len(wanted)].tolist() == wanted[skip:]
        ]
        if not places:
            raise UsageError(f"text {text!r} cannot be found among its own tokens")
        own[row, places[0] : places[0] + len(wanted)] = True
    return own


def _run(vlm: VLM, fed: dict[str, np.ndarray], rows: int, real: int) -> dict[str, np.ndarray]:
    """Pads to static shapes and runs; `states` [L + 1, B, T, D], and of pictures `image` and perhaps `codes`."""
    T = round_up(fed["input_ids"].shape[1], PROMPT_BUCKETS, vlm.config.text.max_positions)

    def padded(name: str, array: np.ndarray) -> np.ndarray:
        widths = [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)
        if name in ("input_ids", "attention_mask"):
            widths[1] = (0, T - array.shape[1])
        return np.pad(array, widths)

    inputs = {name: padded(name, array) for name, array in fed.items()}
    found = {name: np.asarray(value) for name, value in _program(vlm.config, vlm.params, inputs).items()}
    states = found["states"][:, :real].astype(np.float32)
    out = {"states": states}
    if "pixel_values" in fed:
        if vlm.config.sharing.image_attention == "cross":
            out["image"] = found["features"][None, :real, 0].astype(np.float32)
        else:
            seats = fed["input_ids"] == vlm.config.image_token_id
            out["image"] = np.stack(
                [states[:, row, : seats.shape[1]][:, seats[row]] for row in range(real)], 1
            )
        if "codes" in found:
            out["codes"] = found["codes"][:real, 0].astype(np.float32)
    return out


@partial(jax.jit, static_argnums=0)
def _program(config: SmolVLMConfig, params: Any, inputs: dict[str, Array]) -> dict[str, Array]:
    wanted = ("embeddings", "hidden_states", "image_features", "codes")
    found = forward(config, params, inputs, logits="none", capture=wanted).captured
    states = jnp.concatenate(
        [found["embeddings"][None], found["hidden_states"].astype(found["embeddings"].dtype)]
    )
    out = {"states": states}
    if found.get("image_features") is not None:
        out["features"] = found["image_features"]
    return out | ({"codes": found["codes"]} if "codes" in found else {})
