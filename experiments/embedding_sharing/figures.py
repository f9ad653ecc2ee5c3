"""The pictures of the report, each from stored rows alone."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.embedding_sharing.rows import BASE, CONTROL, LENS, TASK, Row, values
from smoljax.data.scenes.scene import scene
from smoljax.data.scenes.vocabulary import COLOURS

Rows = dict[str, dict[int, Row]]
INK = {
    "red": "#c33",
    "green": "#3a3",
    "blue": "#36c",
    "yellow": "#cb2",
    "orange": "#e82",
    "purple": "#839",
    "pink": "#e9b",
    "brown": "#853",
}
MAPS = (
    "linear",
    "tied",
    "norm_matched",
    "word_mixture",
    "visual_table",
    "nearest_word",
    "gap_penalty",
    "random",
)
LENSES = ("linear", "tied", "word_mixture", "nearest_word", "bag_of_words")
DPI = 110


def draw_all(rows: Rows, folder: Path) -> list[str]:
    """Draws every figure into `folder`; the names of those that the rows allow."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in FIGURES.items():
        figure = draw(rows)
        if figure is not None:
            _save(figure, folder / f"{name}.png")
            drawn.append(name)
        plt.close("all")
    return drawn


def _save(figure: Any, path: Path) -> None:
    """As a PNG of 256 colours; no date and no version inside, so the same rows give the same bytes."""
    held = io.BytesIO()
    figure.savefig(held, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    few = Image.open(held).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def _axes(rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 4.0, **more: Any) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **more)


def _clean(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def grid(rows: Rows) -> Any:
    """Right answers by variant: a dot a seed, a bar at the mean."""
    names = [name for name in rows if name != CONTROL]
    figure, axes = _axes(height=0.32 * len(names) + 1)
    ax = axes[0, 0]
    for place, name in enumerate(names):
        found = values(rows[name], TASK[0])
        colour = "#333" if name == BASE else "#36c"
        ax.plot(found, [place] * len(found), "o", color=colour, alpha=0.5, markersize=5)
        ax.plot([np.mean(found)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
    ax.axvline(float(np.mean(values(rows[BASE], TASK[0]))), color="#999", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("share of questions answered rightly (a dot a seed, a bar at the mean)")
    _clean(ax)
    return figure


def _by_layer(read: dict[str, Callable[[dict[str, Any]], float]], label: str) -> Callable[[Rows], Any]:
    def draw(rows: Rows) -> Any:
        kept = [name for name in rows if len(_layers(rows[name])) > 1]
        figure, axes = _axes(1, len(read), width=4.6 * len(read), height=4)
        for ax, (title, of) in zip(axes[0], read.items(), strict=True):
            for number, name in enumerate(kept):
                curves = [
                    [of(layer) for layer in row["measured"]["space"]["layers"]] for row in rows[name].values()
                ]
                style = {"color": "#333", "linewidth": 2.2} if name == BASE else {"linewidth": 1}
                if name == CONTROL:
                    style = {"color": "#999", "linestyle": "--"}
                marker = "os^Dv"[number % 5]
                ax.plot(np.mean(curves, axis=0), label=name, marker=marker, markersize=3, **style)
            ax.set_title(title, fontsize=10)
            ax.set_xlabel("layer (0: the decoder's input)")
            _clean(ax)
        axes[0, 0].set_ylabel(label)
        axes[0, -1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
        return figure

    return draw


def _layers(rows: dict[int, Row]) -> list[Any]:
    return next(iter(rows.values()))["measured"]["space"]["layers"]


def space_map(rows: Rows) -> Any:
    """Image tokens and words on two principal components, one panel a variant."""
    names = [name for name in MAPS if name in rows]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = _axes(lines, columns, width=3.1 * columns, height=3.1 * lines)
    for ax in axes.reshape(-1)[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes.reshape(-1), names, strict=False):
        row = rows[name][min(rows[name])]["measured"]["space"]["map"]
        words, image = np.array(row["words"]), np.array(row["image"])
        ax.scatter(*words.T, s=6, color="#bbb", label="words of captions")
        colours = [INK.get(COLOURS[place], "#777") for place in row["colour"]]
        ax.scatter(*image.T, s=8, c=colours, alpha=0.7, label="image tokens, in their colour")
        ax.set_title(f"{name} ({100 * sum(row['explained']):.0f} %)", fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0, 0].legend(fontsize=6, frameon=False)
    return figure


def lens_pictures(rows: Rows) -> Any:
    """Each image token's nearest word row and its best word by the last layer's logits, written on the picture."""
    names = [name for name in LENSES if name in rows]
    shown = [0, 1]
    figure, axes = _axes(len(shown) * 2, len(names), width=3.0 * len(names), height=6.0 * len(shown))
    for column, name in enumerate(names):
        found = rows[name][min(rows[name])]["measured"]["space"]["shown"]
        for place, index in enumerate(shown):
            item = found[index]
            image, _ = scene("test", item["picture"]).paint()
            for line, kind in enumerate(("input", "logit")):
                ax = axes[2 * place + line, column]
                words = item[kind]
                side = round(len(words) ** 0.5)
                ax.imshow(image, alpha=0.55)
                for spot, word in enumerate(words):
                    y, x = (divmod(spot, side) + np.array(0.5)) * 96 / side
                    ax.text(x, y, _shown(word), fontsize=5.5, ha="center", va="center", rotation=25)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_title(
                    f"{name}: {'nearest row' if kind == 'input' else 'logits, last layer'}", fontsize=8
                )
    return figure


def _shown(word: str) -> str:
    """A word as a picture can show it: no controls and no broken bytes, nine letters at most."""
    kept = "".join(letter for letter in word.strip() if letter.isprintable() and letter != "\ufffd")
    return kept[:9] or "·"


def lens_rates(rows: Rows) -> Any:
    """How often a lens names the shape or colour that an image token shows, beside chance."""
    names = list(rows)
    figure, axes = _axes(height=4.2, width=10)
    ax = axes[0, 0]
    place = np.arange(len(names))
    for number, (real, chance) in enumerate(zip(LENS[0:6:2], LENS[1:6:2], strict=True)):
        at = place + (number - 1) * 0.27
        ax.bar(at, [np.mean(values(rows[name], real)) for name in names], 0.25, label=real.name)
        by_chance = [np.mean(values(rows[name], chance)) for name in names]
        ax.hlines(by_chance, at - 0.12, at + 0.12, color="k", linewidth=1)
    ax.set_xticks(place, names, rotation=45, ha="right")
    ax.set_ylabel("share of image tokens named rightly")
    ax.legend(frameon=False, title="lens (line: chance)", fontsize=8)
    _clean(ax)
    return figure


def training(rows: Rows) -> Any:
    """Validation loss over steps, mean of the seeds."""
    figure, axes = _axes(height=4.5)
    ax = axes[0, 0]
    for number, (name, found) in enumerate(rows.items()):
        curves = [row["curve"].get("validation") for row in found.values() if row["curve"].get("validation")]
        if not curves:
            continue
        steps = [point[0] for point in curves[0]]
        mean = np.mean([[point[1] for point in line] for line in curves], axis=0)
        style = {"color": "#333", "linewidth": 2.2} if name == BASE else {"linewidth": 1}
        ax.plot(steps, mean, label=name, marker="os^Dv"[number % 5], markersize=3, **style)
    ax.set_xlabel("step")
    ax.set_ylabel("validation loss, nats a token")
    ax.legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    _clean(ax)
    return figure


def price(rows: Rows) -> Any:
    """Right answers against floating-point operations of a forward pass."""
    figure, axes = _axes(height=4.2)
    ax = axes[0, 0]
    for name, found in rows.items():
        if name == CONTROL:
            continue
        flops = next(iter(found.values()))["measured"]["cost"]["flops"] / 1e9
        mean = float(np.mean(values(found, TASK[0])))
        ax.plot(flops, mean, "o", color="#333" if name == BASE else "#36c")
        ax.annotate(name, (flops, mean), fontsize=7, xytext=(3, 3), textcoords="offset points")
    ax.set_xlabel("GFLOP of a forward pass of 16 pictures with their conversations (compiler's count)")
    ax.set_ylabel("questions answered rightly")
    _clean(ax)
    return figure


def gradient_ways(rows: Rows) -> Any:
    """The gradient into the word table by way, and how input and output agree."""
    names = list(rows)
    figure, axes = _axes(1, 2, width=11, height=4)
    place = np.arange(len(names))

    def mean(name: str, *keys: str) -> float:
        found = []
        for row in rows[name].values():
            item: Any = row["measured"]["gradients"]
            for key in keys:
                item = item[key]
            found.append(item)
        return float(np.mean(found))

    for number, way in enumerate(("input", "image", "output")):
        shares = [mean(name, "norm", way) for name in names]
        axes[0, 0].bar(place + (number - 1) * 0.27, shares, 0.25, label=way)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_title("norm of the gradient into the word rows", fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 1].bar(place, [mean(name, "cosine") for name in names], color="#777")
    axes[0, 1].set_title("cosine of input's and output's", fontsize=10)
    for ax in axes[0]:
        ax.set_xticks(place, names, rotation=60, ha="right", fontsize=7)
        _clean(ax)
    return figure


FIGURES: dict[str, Callable[[Rows], Any]] = {
    "grid": grid,
    "training": training,
    "map": space_map,
    "gap": _by_layer(
        {
            "centroid gap, directions": lambda layer: layer["gap"]["unit"],
            "separability": lambda layer: layer["separability"],
            "effective rank of image tokens": lambda layer: layer["rank_image"],
        },
        "by layer",
    ),
    "alignment": _by_layer(
        {
            "debiased CKA": lambda layer: layer["cka"]["value"],
            "mutual neighbours − null": lambda layer: layer["knn"]["value"] - layer["knn"]["null_mean"],
            "retrieval R@1": lambda layer: layer["retrieval"]["image_to_text_r1"],
        },
        "pictures and their captions",
    ),
    "lens": lens_pictures,
    "lens_rates": lens_rates,
    "gradients": gradient_ways,
    "cost": price,
}
