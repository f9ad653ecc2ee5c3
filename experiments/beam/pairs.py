"""Pictures with captions, from a list of any length, as a TFDS builder whose work Apache Beam deals out."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from smoljax.processing.images import open_image

QUALITY = 92


class Pairs(tfds.core.GeneratorBasedBuilder):
    """Pictures with a caption each, from a list."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, listed: str | Path, longest: int = 1024, **more: Any) -> None:
        """
        Args:
          listed: the list (`experiments.beam`).
          longest: pictures larger than this on a side are shrunk to it, pixels.
          more: of the base class.
        """
        self._listed, self._longest = Path(listed), longest
        super().__init__(**more)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        )
        return self.dataset_info_from_configs(features=features, description="Pictures with a caption each.")

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        folder, longest = str(self._listed.parent), self._longest
        return (
            beam.io.ReadFromText(str(self._listed))
            | "shuffle lines among workers" >> beam.Reshuffle()
            | "read pictures" >> beam.FlatMap(example, folder, longest)
        )


def example(line: str, folder: str, longest: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, example) of a line of the list; nothing, counted, where its picture cannot be read."""
    import apache_beam as beam  # pyright: ignore[reportMissingImports]
    from apache_beam.io.filesystems import FileSystems  # pyright: ignore[reportMissingImports]

    pair = json.loads(line)
    path = pair["image"] if "://" in pair["image"] else FileSystems.join(folder, pair["image"])
    try:
        with FileSystems.open(path) as file:
            image = open_image(file.read())
    except Exception as error:  # whatever a file system or a broken picture raises
        beam.metrics.Metrics.counter("pairs", f"left out: {type(error).__name__}").inc()
        return
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.convert("RGB").save(held, "JPEG", quality=QUALITY)
    held.seek(0)
    yield f"{pair['image']}|{pair['caption']}", {"image": held, "caption": pair["caption"]}
