"""From any kind of checkpoint to a folder of ours or of the reference."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from smoljax.convert.checkpoint import Checkpoint
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.quantised import Quantisation
from smoljax.nn.quantised import quantise as round_weights

Kind = Literal["native", "lora", "hf", "gguf"]


@dataclass(frozen=True)
class Summary:
    """What a conversion did: kinds, counts, dtype and bytes of the weights written, notes."""

    source_kind: Kind
    to: Literal["native", "hf"]
    path: str
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "notes": list(self.notes)}


def kind_of(path: str | Path) -> Kind:
    """What lies at `path`; raises SmoljaxError that says what was found where it is no checkpoint."""
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if path.is_file():
        raise SmoljaxError(f"{path}: is a file; a checkpoint is a folder, or a .gguf file")
    if not path.is_dir():
        raise SmoljaxError(f"{path}: no such file or folder")
    present = {child.name for child in path.iterdir()}
    if "smoljax.json" in present:
        return "native"
    if "adapter_config.json" in present:
        return "lora"
    if "config.json" in present:
        return "hf"
    shown = ", ".join(sorted(present)[:8]) or "nothing"
    raise SmoljaxError(
        f"{path}: no checkpoint (no config.json, smoljax.json or adapter_config.json): holds {shown}"
    )


def load_checkpoint(
    path: str | Path,
    dtype: str | None = None,
    base: str | Path | None = None,
    *,
    resolve: Callable[[str], Path] | None = None,
    quantised: bool = False,
) -> Checkpoint:
    """Reads a checkpoint of any kind.

    Args:
      path: a folder in the reference's layout, a native folder, a PEFT LoRA folder or a `.gguf` file.
      dtype: "float32" or "bfloat16" casts the weights; None keeps what is stored.
      base: for a LoRA folder, the model it belongs to; None takes the one its config names.
      resolve: for a LoRA folder, finds a base that its config names by something else than a folder here.
      quantised: take a native folder's quantised weights too; otherwise they are refused.

    Raises:
      SmoljaxError: as the reader of that kind says.
    """
    kind = kind_of(path)
    if base is not None and kind != "lora":
        raise UsageError(f"{path}: is no LoRA folder, so it takes no base")
    if kind == "native":
        from smoljax.convert.native import load_native

        return load_native(path, dtype, quantised=quantised)
    if kind == "lora":
        from smoljax.convert.lora import merge_lora

        return with_dtype(merge_lora(load_checkpoint(_base(path, base, resolve)), path), dtype)
    if kind == "gguf":
        from smoljax.convert.gguf import load_gguf

        return with_dtype(load_gguf(Path(path)), dtype)
    from smoljax.convert.hf import load_hf

    return load_hf(path, dtype)


def open_checkpoint(path: str | Path, *, resolve: Callable[[str], Path] | None = None) -> Checkpoint:
    """`load_checkpoint` without the weights: config, small files and notes; `params` stays empty.

    Reads metadata and headers only; `stored_dtype` says how the weights are stored. A LoRA folder is its base
    with the adapter's own small files.

    Args:
      path: as for `load_checkpoint`.
      resolve: as for `load_checkpoint`.

    Raises:
      SmoljaxError: as `load_checkpoint`, but for what only the weights themselves show.
    """
    kind = kind_of(path)
    if kind == "native":
        from smoljax.convert.native import open_native

        return open_native(path)
    if kind == "lora":
        from smoljax.convert.lora import open_lora

        return open_lora(open_checkpoint(_base(path, None, resolve)), path)
    if kind == "gguf":
        from smoljax.convert.gguf import open_gguf

        return open_gguf(path)
    from smoljax.convert.hf import open_hf

    return open_hf(path)


def _base(adapter: str | Path, base: str | Path | None, resolve: Callable[[str], Path] | None) -> str | Path:
    from smoljax.convert.lora import base_of

    base = base if base is not None else base_of(adapter, resolve=resolve)
    if kind_of(base) == "lora":
        raise SmoljaxError(f"{base}: is a LoRA folder itself; merge that first (smoljax convert)")
    return base


def with_dtype(checkpoint: Checkpoint, dtype: str | None) -> Checkpoint:
    """The same checkpoint with its weights in another dtype; None keeps them."""
    import dataclasses

    from smoljax.convert.checkpoint import iterate_leaves, set_leaf
    from smoljax.convert.hf import check_dtype
    from smoljax.convert.tensor_files import cast

    check_dtype(dtype)
    params: dict[str, Any] = {}
    for path, leaf in iterate_leaves(checkpoint.params):
        set_leaf(params, path, cast(leaf, dtype))
    return dataclasses.replace(checkpoint, params=params)


def quantised(checkpoint: Checkpoint, kind: Quantisation | None) -> Checkpoint:
    """The same checkpoint with its matrices rounded; None leaves them."""
    import dataclasses

    import jax
    import numpy as np

    if kind is None:
        return checkpoint
    params = jax.tree.map(np.asarray, round_weights(checkpoint.params, kind))
    return dataclasses.replace(checkpoint, params=params)


def convert(
    src: str | Path,
    dst: str | Path,
    to: Literal["native", "hf"] | None = None,
    dtype: str | None = None,
    base: str | Path | None = None,
    *,
    quantise: Quantisation | None = None,
    resolve: Callable[[str], Path] | None = None,
) -> Summary:
    """Converts a checkpoint of any kind into a new folder.

    Args:
      src: see `load_checkpoint`.
      dst: must not exist, or be an empty folder; appears whole or not at all.
      to: "native", or "hf" for the reference's layout; None is "hf" from a native folder, else "native".
      dtype: what to store; None keeps what is stored.
      base: for a LoRA folder, the model it belongs to.
      quantise: round the matrices to "int8" or "int4" (`smoljax.nn.quantised`); native only.
      resolve: see `load_checkpoint`.

    Raises:
      UsageError: quantised weights in the reference's layout.
      SmoljaxError: the source is not sound or the destination not empty; nothing is written then.
    """
    from smoljax.convert.hf import check_dtype, save_hf
    from smoljax.convert.native import save_native
    from smoljax.convert.write_aside import check_free

    if to not in (None, "native", "hf"):
        raise UsageError(f"to is {to!r}; it must be native or hf")
    check_dtype(dtype)
    kind = kind_of(src)
    check_free(Path(dst))
    if quantise is not None and to == "hf":
        raise UsageError("the reference has no layout for these quantised weights; leave out to hf")
    target: Literal["native", "hf"] = to or ("hf" if kind == "native" and not quantise else "native")
    checkpoint = load_checkpoint(src, dtype, base, resolve=resolve)
    written = (
        save_native(quantised(checkpoint, quantise), dst) if target == "native" else save_hf(checkpoint, dst)
    )
    return Summary(
        source_kind=kind,
        to=target,
        path=str(dst),
        tensors=checkpoint.num_tensors,
        parameters=checkpoint.num_parameters,
        bytes=written,
        dtype=quantise or checkpoint.dtype,
        notes=checkpoint.notes,
    )
