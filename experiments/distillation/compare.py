"""With a teacher against without: differences of figures, by seed and by picture, from the samples' own files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.commands import read_lines
from experiments.statistics import student_interval
from smoljax.errors import SmoljaxError
from smoljax.evaluation.metrics.bootstrap import bootstrap_ratio
from smoljax.evaluation.metrics.facts import f1
from smoljax.evaluation.tasks.vqa import OBJECT_KINDS

Line = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a model over pictures.

    Attributes:
      task: whose predictions it is read from.
      counts: a line → what it adds [K], None where it does not count.
      value: summed counts [..., K] → the figure [...].
      up: whether more is better.
    """

    task: str
    counts: Callable[[Line], Sequence[float] | None]
    value: Callable[[np.ndarray], np.ndarray]
    up: bool = True


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _share(*kinds: str) -> Figure:
    wanted = frozenset(kinds)
    return Figure(
        "vqa", lambda line: (line["exact"], 1.0) if not wanted or line["kind"] in wanted else None, _mean
    )


def _f1(name: str) -> Figure:
    return Figure("caption", lambda line: line[name], f1)


FIGURES: dict[str, Figure] = {
    "VQA exact": _share(),
    "VQA exact, objects": _share(*OBJECT_KINDS),
    "VQA exact, relations": _share("relation"),
    "VQA exact, reading": _share("reading"),
    "caption object+attribute F1": _f1("object_attribute_f1"),
    "caption relation F1": _f1("relation_f1"),
    "loss (nats a token; less is better)": Figure(
        "loss",
        lambda line: (line["loss"] * line["tokens"], line["tokens"]) if line["tokens"] else None,
        _mean,
        up=False,
    ),
}


def by_picture(folder: Path, figure: Figure) -> dict[str, np.ndarray]:
    """Picture → its summed counts [K], from `folder/TASK.jsonl`."""
    found: dict[str, np.ndarray] = {}
    for line in read_lines(folder / f"{figure.task}.jsonl"):
        counts = figure.counts(line)
        if counts is not None:
            found[line["id"]] = found.get(line["id"], 0.0) + np.asarray(counts, np.float64)
    return found


def compare(pairs: Sequence[tuple[Path, Path]], figure: Figure, draws: int = 2000) -> dict[str, Any]:
    """A figure without and with the teacher.

    Args:
      pairs: (without, with) folders of predictions, one pair a seed; all of the same pictures.
      figure: what to compare.
      draws: of the bootstrap.

    Returns:
      `alone`, `taught` and `difference` (taught − alone): a value a seed; `mean` difference; `by_seed`, its 95 %
      interval from Student's t over the seeds; `by_picture`, the 95 % interval of a bootstrap that draws pictures, the
      trained models staying as they are; `pictures`.

    Raises:
      SmoljaxError: the folders are about different pictures.
    """
    tables = [[by_picture(folder, figure) for folder in pair] for pair in pairs]
    names = sorted(tables[0][0])
    for pair, folders in zip(tables, pairs, strict=True):
        for table, folder in zip(pair, folders, strict=True):
            if sorted(table) != names:
                raise SmoljaxError(
                    f"{folder}: {figure.task}.jsonl is about other pictures than the first run's; evaluate all alike"
                )
    counts = np.array([[[table[name] for table in pair] for pair in tables] for name in names])
    shape = counts.shape[1:]  # seeds, 2, K

    def gain(sums: np.ndarray) -> np.ndarray:
        values = figure.value(sums.reshape(*sums.shape[:-1], *shape))
        return np.mean(values[..., 1] - values[..., 0], axis=-1)

    values = figure.value(counts.sum(axis=0))
    differences = values[:, 1] - values[:, 0]
    drawn = bootstrap_ratio(counts.reshape(len(names), -1), gain, len(names), n=draws)
    return {
        "alone": values[:, 0].tolist(),
        "taught": values[:, 1].tolist(),
        "difference": differences.tolist(),
        "mean": float(differences.mean()),
        "by_seed": student_interval(differences),
        "by_picture": [drawn.low, drawn.high],
        "pictures": len(names),
        "up": figure.up,
    }
