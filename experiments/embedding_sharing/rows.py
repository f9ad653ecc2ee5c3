"""The stored rows of a grid, and what they say against the base row: differences with their intervals."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.statistics import paired_ratio, student_interval
from smoljax.errors import SmoljaxError

BASE = "linear"
CONTROL = "random"
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a row.

    Attributes:
      name: in tables.
      read: a row's `measured` → the figure.
      per_cent: shown as a share.
      about: what it is, for the report.
    """

    name: str
    read: Callable[[dict[str, Any]], float]
    per_cent: bool = True
    about: str = ""

    def text(self, value: float) -> str:
        """As a table shows it."""
        return f"{100 * value:.1f}" if self.per_cent else f"{value:.3g}"


def _layer(number: int, *keys: str) -> Callable[[dict[str, Any]], float]:
    def read(measured: dict[str, Any]) -> float:
        layers = measured["space"]["layers"]
        if number == -1 and len(layers) == 1:  # image tokens that never pass through the decoder
            return math.nan
        found: Any = layers[number]
        for key in keys:
            found = found[key]
        return float(found)

    return read


TASK = (
    Column("questions", lambda m: m["task"]["none"]["accuracy"], about="exact answers, reading left out"),
    *(
        Column(kind, lambda m, kind=kind: m["task"]["none"]["by_kind"].get(kind, math.nan))
        for kind in ("existence", "count", "colour", "shape", "size", "texture", "comparison", "relation")
    ),
    Column(
        "box",
        lambda m: m["task"]["none"]["by_kind"].get("locate", math.nan),
        about="all four location tokens right",
    ),
    Column("caption loss", lambda m: m["task"]["none"]["caption_loss"], False, "nats a token"),
)
TEXT = (Column("text loss", lambda m: m["text"]["loss"], False, "plain English, nats a token"),)
_OF = {"none": "accuracy_of_half"}
CAUSAL = tuple(
    Column(
        change,
        lambda m, change=change: m["task"].get(change, {}).get(_OF.get(change, "accuracy"), math.nan),
    )
    for change in ("none", "swap", "shuffle", "average", "move")
)
SPACE = (
    Column("gap", _layer(0, "gap", "relative"), False, "centroid distance over the words' length"),
    Column("gap of directions", _layer(0, "gap", "unit"), False, "the same at length one"),
    Column("energy", _layer(0, "energy"), False, "energy distance of directions"),
    Column(
        "separable", _layer(0, "separability"), False, "area under ROC of a linear probe, image against word"
    ),
    Column(
        "length",
        lambda m: m["space"]["layers"][0]["norms_image"][2] / m["space"]["layers"][0]["norms_text"][2],
        False,
        "median image token over median word",
    ),
    Column("E and W", lambda m: m["space"]["tie"], False, "squared distance of the tables, 2 for strangers"),
    Column("anisotropy", _layer(0, "anisotropy_image"), False, "mean cosine of image tokens"),
    Column("rank", _layer(0, "rank_image"), False, "effective rank of image tokens"),
    Column("CKA", _layer(-1, "cka", "value"), False, "last layer, pictures and their captions"),
    Column(
        "neighbours",
        _layer(-1, "knn", "value"),
        True,
        "mutual 10 nearest, last layer; chance is 10 in the number of pictures",
    ),
    Column(
        "R@1",
        _layer(-1, "retrieval", "image_to_text_r1"),
        True,
        "last layer, mean tokens, centred; chance is one in the number of pictures",
    ),
)
LENS = (
    Column(
        "input", _layer(0, "lens", "input", "top5"), about="the five nearest word rows at the decoder's input"
    ),
    Column("input, chance", _layer(0, "lens", "input", "top5_null")),
    Column(
        "logit", _layer(-1, "lens", "logit", "top5"), about="the output head's best five on the last layer"
    ),
    Column("logit, chance", _layer(-1, "lens", "logit", "top5_null")),
    Column(
        "contextual",
        _layer(-1, "lens", "contextual", "top5"),
        about="the five nearest words in captions, last layer",
    ),
    Column("contextual, chance", _layer(-1, "lens", "contextual", "top5_null")),
    Column("shape probe", _layer(0, "probes", "shape", "accuracy"), about="linear, at the decoder's input"),
    Column("colour probe", _layer(0, "probes", "colour", "accuracy")),
    Column(
        "row probe",
        _layer(0, "probes", "row", "accuracy"),
        about="chance is 1/6, 1/3 with shuffle4",
    ),
)


def read_rows(folder: Path) -> dict[str, dict[int, Row]]:
    """Variant → seed → row, of the files in a folder; the base first, the control last.

    Raises:
      SmoljaxError: there are none, or none of the base.
    """
    found: dict[str, dict[int, Row]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        found.setdefault(row["variant"], {})[row["seed"]] = row
    if BASE not in found:
        raise SmoljaxError(f"{folder}: no row of {BASE!r}, which all others are compared with")
    families = [row["family"] for rows in found.values() for row in rows.values()]
    order = {name: place for place, name in enumerate(dict.fromkeys(["connector", *sorted(families)]))}

    def place(name: str) -> tuple[bool, bool, int, str]:
        family = next(iter(found[name].values()))["family"]
        return name == CONTROL, name != BASE, order[family], name

    return {name: found[name] for name in sorted(found, key=place)}


def values(rows: dict[int, Row], column: Column) -> list[float]:
    """A figure of every seed, in the order of seeds."""
    return [column.read(rows[seed]["measured"]) for seed in sorted(rows)]


def difference(base: dict[int, Row], other: dict[int, Row], column: Column) -> dict[str, Any]:
    """other − base over the seeds that both have: `mean`, `by_seed` (Student's t), `seeds`."""
    seeds = sorted(set(base) & set(other))
    gains = np.array([column.read(other[s]["measured"]) - column.read(base[s]["measured"]) for s in seeds])
    return {"mean": float(gains.mean()), "by_seed": student_interval(gains), "seeds": len(seeds)}


def accuracy_difference(base: dict[int, Row], other: dict[int, Row]) -> dict[str, Any]:
    """`difference` of the share of right answers, and `by_picture`, the interval of a paired bootstrap."""
    seeds = sorted(set(base) & set(other))

    def table(rows: dict[int, Row]) -> np.ndarray:
        return np.array([np.array(rows[s]["measured"]["task"]["none"]["by_picture"])[:, :2] for s in seeds])

    return {**difference(base, other, TASK[0]), "by_picture": paired_ratio(table(base), table(other))}


def differs(found: dict[str, Any]) -> bool:
    """Whether both intervals leave 0 out: the luck of seeds, and which pictures were asked about."""
    both = [found["by_seed"], found["by_picture"]]
    return all(interval is not None and (interval[0] > 0 or interval[1] < 0) for interval in both)
