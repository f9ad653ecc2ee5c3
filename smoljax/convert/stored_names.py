"""From the tensors as a file names and lays them out to the canonical names of the table.

What differs between releases is settled here: aliases, buffers that are no weights, word tables in two
pieces, patch kernels with channels last.
"""

from collections.abc import Mapping

import numpy as np

from smoljax.convert import names
from smoljax.convert.safetensors_file import LazyTensor
from smoljax.errors import SmoljaxError

# m4 checkpoints keep the rows of added tokens in a table of their own: piece → the table it goes under.
_EXTRA_ROWS = {
    "model.text_model.embed_tokens.additional_embedding.weight": names.EMBED_NAME,
    "lm_head.additional_fc.weight": names.HEAD_NAME,
}
_PATCH_KERNEL = "model.vision_model.embeddings.patch_embedding.weight"


def read_canonical(
    stored: Mapping[str, LazyTensor], *, text_only: bool
) -> tuple[dict[str, LazyTensor], list[str], tuple[str, ...]]:
    """(tensors by canonical name, lines about names that are there twice, notes)."""
    tensors: dict[str, LazyTensor] = {}
    origin: dict[str, str] = {}
    duplicates: list[str] = []
    notes: list[str] = []
    for name, tensor in stored.items():
        if names.is_buffer(name):
            notes.append(f"{name} is a buffer, no weight, and is skipped")
            continue
        key = names.canonical(name, text_only=text_only)
        if key in tensors:
            duplicates.append(f"{origin[key]} and {name} both mean {key}")
        tensors[key] = tensor
        origin[key] = name
    for piece, base in _EXTRA_ROWS.items():
        if piece in tensors and base in tensors:
            rows = tensors[base].shape[0], tensors[piece].shape[0]
            tensors[base] = _stacked_rows(tensors[base], tensors.pop(piece), origin[base], origin[piece])
            notes.append(f"{rows[1]} rows of {origin[piece]} are appended to the {rows[0]} of {origin[base]}")
    if _PATCH_KERNEL in tensors and _channels_last(tensors[_PATCH_KERNEL].shape):
        tensors[_PATCH_KERNEL] = _channels_first(tensors[_PATCH_KERNEL])
        notes.append(f"{origin[_PATCH_KERNEL]} has its channels last and is transposed")
    return tensors, duplicates, tuple(notes)


def _stacked_rows(base: LazyTensor, extra: LazyTensor, base_name: str, extra_name: str) -> LazyTensor:
    if base.shape[1:] != extra.shape[1:] or base.stored != extra.stored:
        raise SmoljaxError(
            f"{extra_name} {list(extra.shape)} {extra.stored} cannot be appended to"
            f" {base_name} {list(base.shape)} {base.stored}"
        )
    shape = (base.shape[0] + extra.shape[0], *base.shape[1:])
    return LazyTensor(shape, base.dtype, lambda: np.concatenate([base.read(), extra.read()]), base.stored)


def _channels_last(shape: tuple[int, ...]) -> bool:
    """[E, p, p, C] rather than [E, C, p, p]; patches of C pixels are ambiguous: the reference's."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def _channels_first(tensor: LazyTensor) -> LazyTensor:
    width, height, side, channels = tensor.shape
    return LazyTensor(
        (width, channels, height, side),
        tensor.dtype,
        lambda: np.ascontiguousarray(tensor.read().transpose(0, 3, 1, 2)),
        tensor.stored,
    )
