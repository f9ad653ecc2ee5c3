"""The two levels of the grid: from scratch on scenes, and on the words of a real language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, trained
from experiments.embedding_sharing import words
from experiments.embedding_sharing.dense import BASE, OUT
from experiments.embedding_sharing.rows import CONTROL
from experiments.embedding_sharing.variants import Variant, known
from experiments.scenes.dense import PROCESSOR
from smoljax.training.config_file import as_json, read_config

HERE = "experiments/embedding_sharing"


@dataclass(frozen=True)
class Level:
    """What the rows of a level have in common.

    Attributes:
      name: of the folder of its rows.
      config: the config file whose function takes `sharing` and `seed`.
      seeds: how many there are by default.
      pictures: that rows are measured with.
      text: of the measure of plain text, None without.
      control: what the row of nothing learned is.
    """

    name: str
    config: str
    seeds: int
    pictures: int
    text: str | None
    control: str

    @property
    def results(self) -> Path:
        """Where the rows are kept."""
        return ROOT / HERE / "results" / self.name

    def variants(self) -> Mapping[str, Variant]:
        """By name, one's own included; on real words they keep the table frozen."""
        if self.name == "scenes":
            return known()
        return {**words.VARIANTS, **{name: item for name, item in known().items() if item.own}}

    def starts(self, variant: Variant, seed: int, workdir: Path, dense: list[str]) -> list[str]:
        """Makes what a row starts from, and gives the overrides that name it."""
        if self.name == "words":
            words.start(ROOT / words.START)
            return []
        if not variant.encoder:
            return []
        found = trained(f"{HERE}/dense.py", workdir / f"dense-{seed}", [f"seed={seed}", *dense])
        expected = f"{OUT}/dense-{seed}/model"
        return [] if found["model"] == expected else [f"model.start={found['model']}"]

    def before(self, variant: Variant, seed: int, dense: list[str]) -> dict[str, Any] | None:
        """The config of what a row starts from, None where it starts from nothing."""
        if self.name == "words" or not variant.encoder:
            return None
        return as_json(read_config(ROOT / HERE / "dense.py", [f"seed={seed}", *dense]), defaults=False)

    def architecture(self) -> dict[str, Any] | None:
        """That of the control row, as JSON; None where it is a model's own."""
        return as_json(BASE, defaults=False) if self.name == "scenes" else None

    def untrained(self, seed: int, workdir: Path) -> Path:
        """The model of the control row: random weights; on real words, the start with its fresh connector."""
        if self.name == "words":
            return words.start(ROOT / words.START)
        return _random(seed, workdir / f"{CONTROL}-{seed}" / "model")


def _random(seed: int, folder: Path) -> Path:
    import jax
    import numpy as np

    from smoljax.convert.checkpoint import Checkpoint
    from smoljax.convert.native import save_native
    from smoljax.nn.smolvlm import init_params
    from smoljax.processing.processor import Processor

    if not folder.exists():
        params = jax.tree.map(np.asarray, init_params(BASE, jax.random.key(seed)))
        save_native(Checkpoint(BASE, params, Processor.from_folder(PROCESSOR).files, untrained=True), folder)
    return folder


LEVELS = {
    "scenes": Level(
        "scenes", f"{HERE}/scenes.py", 3, 400, None, "random weights throughout, nothing trained"
    ),
    "words": Level(
        "words", f"{HERE}/words.py", 1, 96, f"{HERE}/text.txt", "a fresh connector, nothing trained"
    ),
}
