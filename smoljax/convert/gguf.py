"""GGUF files of llama-architecture text models → config, parameters and tokenizer files.

GGUF stores matrices as [out, in], quantised in blocks along `in`. Its converter permutes the rows of the
query and key matrices of llama models so that RoPE rotates neighbouring pairs; `unpermute` brings back the
half-split order that `smoljax.ops` (and the PyTorch reference) rotates.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, read by the `gguf` package.
"""

import dataclasses
import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from smoljax.config import SmolVLMConfig, TextConfig
from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, set_leaf
from smoljax.convert.gguf_tokenizer import generation_ids, tokenizer_files
from smoljax.convert.hf_config import to_hf_config
from smoljax.errors import SmoljaxError, UsageError

_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# Metadata that changes the function in ways the decoder does not have.
_UNSUPPORTED_KEYS = (
    "llama.attention.scale",
    "llama.attention.sliding_window",
    "llama.embedding_scale",
    "llama.expert_count",
    "llama.logit_scale",
    "llama.residual_scale",
)


# Our paths → GGUF names, without `decoder/layers_{i}/` and `blk.{i}.`, and without `.weight`.
_GLOBAL_NAMES = {
    "embedding/table": "token_embd",
    "embedding/head": "output",
    "decoder/final_norm/scale": "output_norm",
}
_LAYER_NAMES = {
    "norm1/scale": "attn_norm",
    "norm2/scale": "ffn_norm",
    "attention/q/kernel": "attn_q",
    "attention/k/kernel": "attn_k",
    "attention/v/kernel": "attn_v",
    "attention/out/kernel": "attn_output",
    "mlp/gate/kernel": "ffn_gate",
    "mlp/up/kernel": "ffn_up",
    "mlp/down/kernel": "ffn_down",
}
_TABLE, _HEAD = "token_embd.weight", "output.weight"
_LAYER_PATH = re.compile(r"decoder/layers_(\d+)/(.+)")


def load_gguf(path: str | Path, dtype: str | None = None) -> Checkpoint:
    """Reads a llama-architecture GGUF file.

    Args:
      path: the `.gguf` file.
      dtype: "float32" (the default: block-quantised values have no other exact form) or "bfloat16".

    Returns:
      A text-only checkpoint in the unstacked layout of `docs/architecture.md`. Its `files` hold the rebuilt
      tokenizer, a Hugging Face style `config.json` and `generation_config.json`.

    Raises:
      SmoljaxError: the file is missing, truncated, damaged or of another architecture; a metadata key is
        missing; tensors are missing, left over, of another shape or not finite (all of them are named); or
        the `gguf` package is not installed.
      UsageError: an unknown dtype.
    """
    path = Path(path)
    dtype = dtype or "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known here; known: {', '.join(_DTYPES)}")
    opened, tensors = _open_checkpoint(path, dtype)
    config = opened.config
    params: dict[str, Any] = {}
    not_finite = []
    for name, entry in _entries(config).items():
        array = _dequantise(tensors[name], path)
        if not np.isfinite(array).all():
            not_finite.append(name)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            array = unpermute(array, config.text.head_dim)
        set_leaf(params, entry.ours, np.array(names.to_ours(array, entry), _DTYPES[dtype], order="C"))
    if not_finite:
        raise SmoljaxError(f"{path}: values that are not finite in {', '.join(not_finite)}")
    return dataclasses.replace(opened, params=params)


def open_gguf(path: str | Path) -> Checkpoint:
    """`load_gguf` without the weights: config, files and notes from the metadata; `params` stays empty.

    Raises:
      SmoljaxError: as `load_gguf`, but for values that are not finite.
    """
    return _open_checkpoint(Path(path), "float32")[0]


def require_gguf(what: str | Path) -> None:
    """Raises SmoljaxError that names the extra where the `gguf` package is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise SmoljaxError(f'{what}: reading GGUF needs the gguf package: pip install "smoljax[gguf]"')


def gguf_name(path: str) -> str:
    """One of our paths as GGUF names it: "decoder/layers_3/mlp/up/kernel" → "blk.3.ffn_up.weight"."""
    if layer := _LAYER_PATH.fullmatch(path):
        return f"blk.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"
    return f"{_GLOBAL_NAMES[path]}.weight"


def config_from_metadata(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> SmolVLMConfig:
    """The architecture that the metadata names; the vocabulary is what the embedding table holds.

    Args:
      metadata: GGUF keys to values.
      shapes: tensor names to shapes, outermost dimension first.
      path: the file, for messages.

    Raises:
      SmoljaxError: another architecture, a required key missing or of another type, or an option that the
        decoder does not have.
    """
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise SmoljaxError(f"{path}: GGUF architecture {architecture!r}; only 'llama' (SmolLM2) is read")
    _refuse_unsupported(metadata, path)

    def whole(key: str, default: int | None = None) -> int:
        return _number(metadata, f"llama.{key}", int, path, default)

    width, heads = whole("embedding_length"), whole("attention.head_count")
    if width % heads and "llama.attention.key_length" not in metadata:
        raise SmoljaxError(f"{path}: {heads} attention heads do not divide llama.embedding_length {width}")
    head_dim = whole("attention.key_length", max(width // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := whole(key, head_dim)) != head_dim:
            raise SmoljaxError(f"{path}: llama.{key} is {found}; only the head width {head_dim} is read")
    if (layers := whole("block_count")) > len(shapes):
        raise SmoljaxError(f"{path}: llama.block_count is {layers} but there are only {len(shapes)} tensors")
    if _TABLE not in shapes:
        raise SmoljaxError(f"{path}: the tensor {_TABLE} is missing")
    vocabulary = shapes[_TABLE][0]
    if (named := whole("vocab_size", vocabulary)) != vocabulary:
        raise SmoljaxError(f"{path}: llama.vocab_size is {named} but {_TABLE} has {vocabulary} rows")
    try:
        text = TextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=whole("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_theta=_number(metadata, "llama.rope.freq_base", float, path),
            rms_norm_eps=_number(metadata, "llama.attention.layer_norm_rms_epsilon", float, path),
            max_positions=whole("context_length"),
        )
    except SmoljaxError as error:
        raise SmoljaxError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    return SmolVLMConfig(
        vision=None,
        text=text,
        scale_factor=None,
        image_token_id=None,
        tie_embeddings=_HEAD not in shapes,
        model_type="llama",
    )


def unpermute(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a GGUF query or key matrix, from interleaved RoPE pairs back to half-split order.

    Args:
      weight: [heads·H, D], any dtype.
      head_dim: H, even.

    Returns:
      The same rows, [heads·H, D]: row 2j + s of a head (s is 0 or 1) becomes row s·H/2 + j.
    """
    rows, width = weight.shape
    return weight.reshape(rows // head_dim, head_dim // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _open_checkpoint(path: Path, dtype: str) -> tuple[Checkpoint, dict[str, Any]]:
    """(the checkpoint without params, its tensors by name, still quantised)."""
    metadata, tensors = _open(path)
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()}
    config = config_from_metadata(metadata, shapes, path)
    wanted = {name: entry.shape for name, entry in _entries(config).items()}
    names.check_same(wanted, shapes, str(path))
    kinds = Counter(tensor.tensor_type.name for tensor in tensors.values())
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    opened = Checkpoint(
        config=config,
        params={},
        files=_files(metadata, config, dtype, path),
        notes=_notes(metadata, listed, dtype),
        source=str(path),
        stored_dtype=listed,
    )
    return opened, tensors


def _entries(config: SmolVLMConfig) -> dict[str, names.Entry]:
    return {gguf_name(entry.ours): entry for entry in names.expand(config)}


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All metadata as plain values, and the tensors (still quantised, memory-mapped) by name."""
    require_gguf(path)
    from gguf import GGUFReader

    if not path.is_file():
        raise SmoljaxError(f"{path}: no such file")

    class BoundedReader(GGUFReader):
        """Refuses to read past the end, where the base class goes on with empty arrays."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise EOFError(f"it ends at byte {len(self.data)} but should go on to byte {end}")
            return super()._get(int(offset), dtype, count, override_order)

    try:
        reader = BoundedReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (EOFError, OSError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise SmoljaxError(
            f"{path}: not a whole GGUF file: {_one_line(error)}; fetch or copy it again"
        ) from error
    if reader.byte_order == "S":
        raise SmoljaxError(f"{path}: a GGUF file of the other byte order; only the machine's own is read")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def _dequantise(tensor: Any, path: Path) -> np.ndarray:
    """One tensor as float32, in its logical shape."""
    from gguf import dequantize

    try:
        with np.errstate(all="ignore"):  # what is not finite is reported by name
            return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise SmoljaxError(f"{path}: {tensor.name} is of type {kind}, which gguf cannot dequantise") from None


def _refuse_unsupported(metadata: Mapping[str, Any], path: str | Path) -> None:
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        raise SmoljaxError(f"{path}: one of {parts} parts; join them first with llama-gguf-split --merge")
    found = [key for key in _UNSUPPORTED_KEYS if metadata.get(key)]
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        found.append("llama.rope.scaling.type")
    if metadata.get("llama.rope.scale_linear", 1) != 1:
        found.append("llama.rope.scale_linear")
    if found:
        raise SmoljaxError(f"{path}: the decoder has no {', '.join(found)}; the result would be wrong")


def _number(
    metadata: Mapping[str, Any], key: str, kind: type[Any], path: str | Path, default: Any = None
) -> Any:
    value = metadata.get(key, default)
    if value is None:
        raise SmoljaxError(f"{path}: the metadata key {key} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise SmoljaxError(f"{path}: {key} is {_short(value)}, not one {kind.__name__}")
    if not 0 < value < math.inf:
        raise SmoljaxError(f"{path}: {key} is {value}; it must be more than 0 and finite")
    # GGUF holds float32: the shortest decimal that gives the same float32 is what the author wrote (1e-05).
    return float(str(np.float32(value))) if kind is float else value


def _files(metadata: Mapping[str, Any], config: SmolVLMConfig, dtype: str, path: Path) -> dict[str, bytes]:
    ids = {f"{role}_token_id": value for role, value in generation_ids(metadata, path).items()}
    model = json.dumps(to_hf_config(config, dtype=dtype, **ids), indent=2) + "\n"
    return {"config.json": model.encode(), **tokenizer_files(metadata, config.text, path)}


def _notes(metadata: Mapping[str, Any], listed: str, dtype: str) -> tuple[str, ...]:
    notes = [f"GGUF tensors: {listed}; dequantised to {dtype}; query and key rows un-permuted"]
    for key in ("general.name", "general.license"):
        if key in metadata:
            notes.append(f"{key}: {metadata[key]}")
    return tuple(notes)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
