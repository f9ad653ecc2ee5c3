"""TensorFlow Datasets read by number, without TensorFlow: data sets prepared as ArrayRecord files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smoljax.errors import SmoljaxError, UsageError

_ADDRESS = re.compile(r"tfds:(?P<name>\w+)(?:/(?P<config>[^:]+))?(?::(?P<split>.+))?")


def open_tfds(
    address: str, data_dir: str | Path | None = None
) -> tuple[str, int, Callable[[int], dict[str, Any]]]:
    """A prepared data set.

    Args:
      address: "tfds:NAME[/CONFIG][:SPLIT]"; `scenes` is built on first use.
      data_dir: where TFDS keeps prepared data.

    Returns:
      Its name, how many examples it has, and a function that gives one by its number as a dict of features.

    Raises:
      UsageError: not such an address.
      SmoljaxError: no such data set, config, split or prepared files.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address}: a TFDS data set is written tfds:NAME[/CONFIG][:SPLIT]")
    name, config, split = match["name"], match["config"], match["split"] or "train"
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise SmoljaxError(f"{address}: needs TensorFlow Datasets: pip install 'smoljax[data]'") from error
    try:
        builder: Any
        if name == "scenes":
            from smoljax.data.scenes import open_scenes

            builder = open_scenes(config or "full", data_dir)
        else:
            builder = tfds.builder(
                f"{name}/{config}" if config else name,
                data_dir=None if data_dir is None else str(data_dir),
                file_format="array_record",
            )
        source = builder.as_data_source(split=split, decoders=_decoders(tfds, builder))
    except SmoljaxError:
        raise
    except Exception as error:  # TFDS raises its own, ValueError, AssertionError, … for a wrong name or split
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SmoljaxError(
            f"{address}: cannot be opened ({reason}); check its name, config and split, and that it is prepared "
            "as array_record"
        ) from error
    return name, len(source), source.__getitem__


def _decoders(tfds: Any, builder: Any) -> dict[str, Any]:
    # Pictures stay encoded: Pillow decodes them later, like any file.
    images = [key for key, item in builder.info.features.items() if isinstance(item, tfds.features.Image)]
    return {key: tfds.decode.SkipDecoding() for key in images}
