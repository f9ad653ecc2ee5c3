"""The native folder: what `smoljax convert` writes, and what loads without copying the weights.

smoljax.json      format and converter version, config, layout, dtype, counts, size and CRC-32 of every file
params/           the weights, saved by Orbax (Zarr 3, uncompressed, a folder an array), as they are laid out for
                  answering: layers stacked, the decoder's matrices packed (`smoljax.nn.packed`)
processor/        the small files of the original, verbatim
"""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

import smoljax
from smoljax.config import SmolVLMConfig, from_dict, to_dict
from smoljax.convert import names
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.checksums import first_difference, sums_of
from smoljax.convert.hf import check_dtype, checked_leaves, json_bytes
from smoljax.convert.mapped_zarr import map_array
from smoljax.convert.tensor_files import cast, read_json
from smoljax.convert.write_aside import write_aside
from smoljax.errors import SmoljaxError
from smoljax.nn.packed import pack, unpack
from smoljax.nn.quantised import Quantisation, quantise
from smoljax.nn.stacking import stack_layers, unstack_layers

#: 3 is what is written; 1, and 2 where the weights are quantised, hold the decoder's matrices one by one.
FORMAT_VERSIONS = (1, 2, 3)
METADATA_FILE = "smoljax.json"
PARAMS_FOLDER = "params"
FILES_FOLDER = "processor"


def save_native(
    checkpoint: Checkpoint, folder: str | Path, dtype: str | None = None, *, scan_layers: bool = True
) -> int:
    """Writes a native folder, whole or not at all.

    Args:
      checkpoint: params in any layout, NumPy or jax arrays.
      folder: must not exist, or be empty.
      dtype: what to store; None keeps each array's own. Quantised weights keep theirs.
      scan_layers: stack the layers on disk (fewer, larger arrays: faster to read) and pack the decoder's matrices,
        unless they are of several dtypes. Every layout loads.

    Returns:
      Bytes of weights.

    Raises:
      SmoljaxError: params that do not fit the config, NaN or infinite weights, a destination that is not
        empty. Nothing is written then.
    """
    check_dtype(dtype)
    kind = checkpoint.quantised
    leaves = checked_leaves(checkpoint, _stored_shapes(checkpoint.config, kind), kind)
    params: dict[str, Any] = {}
    for path, leaf in leaves.items():
        set_leaf(params, path, cast(np.asarray(leaf), None if kind else dtype))
    written = Checkpoint(checkpoint.config, params)
    packed = scan_layers and written.dtype != "mixed"
    tree = stack_layers(params) if scan_layers else params
    tree = pack(tree) if packed else tree
    with write_aside(Path(folder)) as scratch:
        (scratch / FILES_FOLDER).mkdir()
        for name, content in checkpoint.files.items():
            (scratch / FILES_FOLDER / name).write_bytes(content)
        with _quiet():
            _checkpointer().save(scratch / PARAMS_FOLDER, args=_args().PyTreeSave(tree))
        metadata = {
            "format_version": FORMAT_VERSIONS[-1],
            "smoljax_version": smoljax.__version__,
            "config": {key: value for key, value in to_dict(checkpoint.config).items() if key != "compute"},
            "layout": {"scan_layers": scan_layers, "packed": packed},
            "dtype": written.dtype,
            "quantised": kind,
            "tensors": written.num_tensors,
            "parameters": written.num_parameters,
            "bytes": written.num_bytes,
            "source": checkpoint.source,
            "untrained": checkpoint.untrained,
            "notes": list(checkpoint.notes),
            "files": sums_of(scratch),
        }
        (scratch / METADATA_FILE).write_bytes(json_bytes(metadata))
    return written.num_bytes


def load_native(
    folder: str | Path, dtype: str | None = None, *, verify: bool = True, quantised: bool = False
) -> Checkpoint:
    """Reads a native folder of either layout, always into the unstacked one and a default `compute`.

    Args:
      folder: what `save_native` wrote.
      dtype: "float32" or "bfloat16" casts; None keeps what is stored.
      verify: check the CRC-32 of every file (0.2 s a gigabyte). Sizes are checked always.
      quantised: take quantised weights too, as they are; otherwise they are refused.

    Raises:
      SmoljaxError: quantised weights where plain ones are wanted;
        no native folder, a format version this release does not know, or anything in it that is
        missing, cut short or does not fit.
    """
    check_dtype(dtype)
    folder = Path(folder)
    metadata = read_metadata(folder)
    config, kind = _config(folder, metadata), metadata.get("quantised")
    if kind is not None and not quantised:
        raise SmoljaxError(
            f"{folder}: its weights are {kind}: they answer and are measured, but are neither trained nor converted; "
            "take the checkpoint that it was made from"
        )
    _check_files(folder, metadata, content=verify)
    params = _restore(folder, config, metadata["layout"], kind)
    params = unstack_layers(unpack(config.text, params) if metadata["layout"].get("packed") else params)
    if dtype is not None and kind is None:
        params = jax.tree.map(lambda leaf: cast(leaf, dtype), params)
    return dataclasses.replace(open_native(folder), params=params)


def holds_packed(folder: str | Path) -> bool:
    """Whether `map_packed` will find a folder's weights laid out for answering."""
    layout = read_metadata(Path(folder))["layout"]
    return bool(layout["scan_layers"] and layout.get("packed"))


def map_packed(folder: str | Path) -> dict[str, Any]:
    """The weights of a folder that `holds_packed`, as they are stored: packed, layers stacked, no copies.

    Only the sizes of its files are checked; `verify` looks at their content.

    Raises:
      SmoljaxError: as `load_native`.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    _check_files(folder, metadata, content=False)
    return _restore(folder, _config(folder, metadata), metadata["layout"], metadata.get("quantised"))


def verify(folder: str | Path) -> None:
    """Raises SmoljaxError where a file of a native folder has not the content that it was written with."""
    _check_files(Path(folder), read_metadata(Path(folder)), content=True)


def _check_files(folder: Path, metadata: dict[str, Any], *, content: bool) -> None:
    if wrong := first_difference(folder, metadata["files"], content=content):
        raise SmoljaxError(f"{folder}: damaged: {wrong}; convert it again")


def open_native(folder: str | Path) -> Checkpoint:
    """A native folder's config, small files and notes; `params` stays empty.

    Raises:
      SmoljaxError: as `read_metadata`.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    kept = folder / FILES_FOLDER
    files = {path.name: path.read_bytes() for path in sorted(kept.iterdir())} if kept.is_dir() else {}
    return Checkpoint(
        config=_config(folder, metadata),
        params={},
        files=files,
        notes=tuple(metadata["notes"]),
        source=str(folder),
        untrained=metadata.get("untrained") is True,
        stored_dtype=str(metadata.get("dtype", "")),
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """`smoljax.json`, checked for its version and keys but not against the weights.

    Raises:
      SmoljaxError: not there, damaged, or of another format version.
    """
    if not (folder / METADATA_FILE).is_file():
        raise SmoljaxError(f"{folder}: no {METADATA_FILE}, so no native checkpoint")
    metadata = read_json(folder / METADATA_FILE)
    version = metadata.get("format_version")
    if version not in FORMAT_VERSIONS:
        raise SmoljaxError(
            f"{folder}: native format {version!r}, written by smoljax {metadata.get('smoljax_version', '?')};"
            f" this is smoljax {smoljax.__version__}, which reads formats "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}: convert it again"
        )
    layout = metadata.get("layout")
    files = metadata.get("files")
    whole = (
        isinstance(metadata.get("config"), dict)
        and isinstance(metadata.get("notes"), list)
        and isinstance(layout, dict)
        and isinstance(layout.get("scan_layers"), bool)
        and isinstance(files, dict)
        and all(isinstance(row, list) and len(row) == 2 for row in files.values())
        and metadata.get("quantised") in (None, *get_args(Quantisation))
    )
    if not whole:
        raise SmoljaxError(f"{folder}: damaged: {METADATA_FILE} is incomplete; convert it again")
    return metadata


def _config(folder: Path, metadata: dict[str, Any]) -> SmolVLMConfig:
    # How it was executed where it was saved says nothing about how it is loaded: unstacked, float32 at use.
    stored = {key: value for key, value in metadata["config"].items() if key != "compute"}
    try:
        return from_dict(stored)
    except (SmoljaxError, TypeError, AttributeError) as error:
        raise SmoljaxError(f"{folder / METADATA_FILE}: {error}") from error


def _stored_shapes(config: SmolVLMConfig, kind: Quantisation | None) -> dict[str, Any]:
    """The tree of a native folder, unstacked, in shapes."""
    plain: dict[str, Any] = {}
    for entry in names.stored_entries(config):
        set_leaf(plain, entry.ours, jax.ShapeDtypeStruct(entry.our_shape, np.float32))
    return plain if kind is None else jax.eval_shape(lambda params: quantise(params, kind), plain)


def _restore(
    folder: Path, config: SmolVLMConfig, layout: dict[str, Any], kind: Quantisation | None
) -> dict[str, Any]:
    """The stored tree: mapped where that is possible, else read by Orbax."""
    tree = _stored_shapes(config, kind)
    tree = stack_layers(tree) if layout["scan_layers"] else tree
    tree = jax.eval_shape(pack, tree) if layout.get("packed") else tree
    try:
        found = _mapped(folder / PARAMS_FOLDER, tree)
        if found is None:
            found = _read_by_orbax(folder / PARAMS_FOLDER, tree)
    except Exception as error:  # Orbax and TensorStore raise many kinds; all mean the same here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SmoljaxError(
            f"{folder}: damaged: {PARAMS_FOLDER} cannot be read ({first[:160]}); convert it again"
        ) from error
    names.check_same(
        {path: tuple(leaf.shape) for path, leaf in iterate_leaves(tree)},
        {path: tuple(leaf.shape) for path, leaf in iterate_leaves(found)},
        str(folder),
    )
    return found


def _mapped(params: Path, tree: dict[str, Any]) -> dict[str, Any] | None:
    """All arrays as views of their files, or None where one is stored in a form that cannot be mapped."""
    stored = {path.name for path in params.iterdir() if path.is_dir()}
    leaves = {path: path.replace("/", ".") for path, _ in iterate_leaves(tree)}
    if stored != set(leaves.values()):
        return None
    found: dict[str, Any] = {}
    for path, name in leaves.items():
        array = map_array(params / name)
        if array is None:
            return None
        set_leaf(found, path, array)
    return found


def _read_by_orbax(params: Path, tree: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with _quiet():
        return _checkpointer().restore(
            params.absolute(), args=_args().PyTreeRestore(restore_args=restore_args)
        )


def _checkpointer() -> Any:
    """Zarr 3, a folder an array, uncompressed: any Orbax reads it, and `map_array` need not even read it."""
    import orbax.checkpoint as ocp

    # In a run of several hosts each that reads or writes does so for itself, whatever the others do.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me,
        active_processes={me} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"host{me}" if jax.process_count() > 1 else None,
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_zarr3=True,
        use_compression=False,
        save_concurrent_gb=1,  # bounds the copies in flight
        multiprocessing_options=alone,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _args() -> Any:
    import orbax.checkpoint as ocp

    return ocp.args


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's warnings about its own temporary folders off standard error."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
