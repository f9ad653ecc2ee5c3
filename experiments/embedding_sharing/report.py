"""docs/embedding_sharing.md and a page in one file, from stored rows: tables, figures, and what they allow to say.

python -m experiments.embedding_sharing.run --report
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.embedding_sharing.figures import draw_all
from experiments.embedding_sharing.rows import (
    BASE,
    CAUSAL,
    CONTROL,
    LENS,
    SPACE,
    TASK,
    TEXT,
    Column,
    Row,
    accuracy_difference,
    differs,
    read_rows,
    values,
)
from smoljax.errors import SmoljaxError

Rows = dict[str, dict[int, Row]]
NAME = "embedding_sharing"
CAPTIONS = {
    "grid": "Questions answered rightly.",
    "training": "Validation loss of the next token.",
    "map": "Image tokens that show an object and words of captions at the decoder's input, all at length one, on the "
    "first two principal components of both together (share of variance in brackets; seed 0).",
    "gap": "How far apart and how wide: image tokens of pictures alone, words of captions alone.",
    "alignment": "Whether a picture's mean token and its caption's go together.",
    "lens": "The word that each image token is nearest to at the decoder's input, and what the output head reads "
    "off it after the last layer (two test pictures, seed 0).",
    "lens_rates": "How often a lens names the shape or the colour that an image token shows.",
    "gradients": "Who teaches the word table, at the end of training, on one batch.",
    "cost": "What it costs.",
}
HEAD = """# Embedding sharing: one space for image patches and words, varied

Written by `python -m experiments.embedding_sharing.run` from the rows in `experiments/embedding_sharing/results`;
`--report` redraws it. What can be varied and measured: [sharing.md](sharing.md). Each row's file holds its config, its
hash, versions and times; rerunning it from its config gives the same numbers
([how](your_connector.md#rerunning-a-row)). The same page in one file: [report.html](embedding_sharing/report.html).
"""
TOLD = {
    "scenes": """## (a) From scratch on scenes

{rows} variants, seeds {seeds} of the base; {steps} steps of 16 pictures each, after a patch encoder that each seed
trains once on labels of patches (*no_encoder* goes without). Same start otherwise, same pictures, order and steps for
all, and the same questions but in *contrastive*, whose longer rows have room for a few more
(`python -m experiments.embedding_sharing.room` counts them). Where parameters or cost differ, the table of
cost says so. Measured on the first {pictures} pictures of `tfds:scenes:test`.
""",
    "words": """## (b) On real words

SmolLM2-135M-Instruct (fetched; 4-bit weights, as float32) behind the patch encoder of smolvlm-nano. The word table
stays as it is; encoder, connector and the rows of the new tokens learn for {steps} steps of 8 pictures, the decoder at
a tenth of their rate{frozen}. {rows} variants, seeds {seeds} of the base; measured on the first {pictures} pictures of
`tfds:scenes:test`, and on plain English (`experiments/embedding_sharing/text.txt`), which a decoder may unlearn here.
""",
}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Embedding sharing</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}}
td,th{{border-bottom:1px solid #ddd;padding:.2rem .5rem;text-align:right;white-space:nowrap}}
td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}code{{background:#f4f4f4}}
</style></head><body>{body}</body></html>
"""


def write_report(folders: Mapping[str, Path], docs: Path) -> str:
    """Writes `docs/embedding_sharing.md`, its figures, and `docs/embedding_sharing/report.html`.

    Args:
      folders: level → the folder of its rows; levels without rows are left out.
      docs: where the pages go.

    Returns:
      What was written, for the terminal.

    Raises:
      SmoljaxError: no level has rows, or one has none of the base.
    """
    found = {level: read_rows(folder) for level, folder in folders.items() if any(folder.glob("*.json"))}
    if not found:
        raise SmoljaxError(f"no rows in {', '.join(map(str, folders.values()))}; train some first")
    parts, figures = [HEAD], 0
    for level, rows in found.items():
        drawn = draw_all(rows, docs / NAME / level)
        parts.append(section(level, rows, drawn))
        figures += len(drawn)
    text = "\n".join(parts)
    (docs / f"{NAME}.md").write_text(text)
    (docs / NAME / "report.html").write_text(as_html(text, docs))
    count = sum(len(rows) for rows in found.values())
    return f"{docs / NAME}.md and {docs / NAME / 'report.html'}: {count} variants, {figures} figures"


def section(level: str, rows: Rows, drawn: list[str]) -> str:
    """A level of the report as Markdown."""
    base = rows[BASE][min(rows[BASE])]
    found = {
        name: accuracy_difference(rows[BASE], other)
        for name, other in rows.items()
        if name not in (BASE, CONTROL) and set(other) & set(rows[BASE])
    }
    told = TOLD[level].format(
        steps=base["training"]["steps"],
        seeds=", ".join(map(str, sorted(rows[BASE]))),
        rows=len(set(rows) - {CONTROL}),
        pictures=base["measured"]["pictures"],
        frozen=", in the row *frozen* not at all" if "frozen" in rows else "",
    )
    real = all("text" in row["measured"] for found in rows.values() for row in found.values())
    parts = [
        told,
        "### What the numbers allow to say\n",
        conclusions(rows, found),
        "### Right answers\n",
        (
            "Difference to *linear*, in points, paired by seed; *by seed* is Student's t interval of the mean (95 %), "
            "*by picture* a paired bootstrap over pictures. Exact answers by forced decoding: a greedy answer is right "
            "exactly if every true token is the best one.\n"
        ),
        gains(rows, found),
        table(rows, TASK + (TEXT if real else ())),
        "### The space\n",
        "At the decoder's input unless a layer is named; image tokens of pictures alone, words of captions alone. "
        + legend(SPACE)
        + "\n",
        table(rows, SPACE),
        "### Words for patches\n",
        "Share of image tokens that show an object, and are named by its shape or colour; chance shuffles which token "
        "shows what. " + legend(LENS) + "\n",
        table(rows, LENS),
        "### Do the answers rest on the image tokens?\n",
        (
            "Right answers with another picture's tokens (*swap*), the tokens in another order (*shuffle*), all equal "
            "to their mean (*average*), or moved onto the words' centroid (*move*); first half of the pictures.\n"
        ),
        table(rows, CAUSAL),
        "### Table use\n",
        codes(rows),
        "### Cost\n",
        prices(rows),
        "### Figures\n",
        *(f"![{CAPTIONS[name]}]({NAME}/{level}/{name}.png)\n\n*{CAPTIONS[name]}*\n" for name in drawn),
        "### Rows\n",
        ledger(rows),
    ]
    return "\n".join(parts)


def conclusions(rows: Rows, found: dict[str, Any]) -> str:
    """What differs beyond both intervals, and what does not."""

    def said(name: str) -> str:
        return f"*{name}* ({100 * found[name]['mean']:+.1f})"

    def mean(change: str) -> float:
        column = next(column for column in CAUSAL if column.name == change)
        return 100 * float(np.mean(values(rows[BASE], column)))

    control = ""
    if CONTROL in rows:
        about = next(iter(rows[CONTROL].values()))["about"]
        control = f" The control ({about}): {100 * np.mean(values(rows[CONTROL], TASK[0])):.1f} %."
    sure = [name for name in found if differs(found[name])]
    better = [said(name) for name in sure if found[name]["mean"] > 0]
    worse = [said(name) for name in sure if found[name]["mean"] < 0]
    open_ = [said(name) for name in found if name not in sure]
    base = np.mean(values(rows[BASE], TASK[0]))
    single = [name for name, item in found.items() if item["by_seed"] is None]
    lines = [
        (
            f"- The base answers {100 * base:.1f} % of the questions; of the first half's pictures "
            f"{mean('none'):.1f} %, and with another picture's tokens, which is what guessing gives, {mean('swap'):.1f}"
            f" %.{control}"
        ),
        f"- Beyond both intervals better than *linear*: {', '.join(better) or 'none'}.",
        f"- Beyond both intervals worse: {', '.join(worse) or 'none'}.",
        f"- Not to be told apart from it here: {', '.join(open_) or 'none'}.",
        (
            f"- {len(found)} differences are looked at; at 95 %, chance alone gives about {0.05 * len(found):.1f} "
            "beyond one interval. Few seeds make the intervals by seed wide: what is not told apart may still differ "
            "by less than they show."
        ),
    ]
    used = {name: _rows_used(rows_of) for name, rows_of in rows.items()}
    if stuck := [name for name, codes in used.items() if codes and codes["perplexity"] < 1.5]:
        lines.append(
            f"- {', '.join(f'*{name}*' for name in stuck)}: all image tokens took the same row of the table, so they "
            "tell nothing of the picture, and the answers are guesses. That is how it fell out here; it does not "
            "speak against discrete image tokens as such."
        )
    if single:
        beyond = [
            said(name)
            for name in single
            if min(found[name]["by_picture"]) > 0 or max(found[name]["by_picture"]) < 0
        ]
        lines.append(
            f"- One seed says nothing about the luck of seeds, so none of {', '.join(single)} can be told apart yet; "
            f"beyond the interval by picture alone: {', '.join(beyond) or 'none'}."
        )
    return "\n".join(lines) + "\n"


def _rows_used(found: dict[int, Row]) -> dict[str, float] | None:
    """How image tokens use the rows of a table (`analysis.codes`), the mean over seeds; None without a table."""
    used = [row["measured"]["space"].get("codes") for row in found.values()]
    return {key: float(np.mean([item[key] for item in used])) for key in used[0]} if all(used) else None


def gains(rows: Rows, found: dict[str, Any]) -> str:
    """The table of differences."""
    lines = ["| variant | | seeds | difference | by seed | by picture |", "|---|---|---|---|---|---|"]
    for name, item in found.items():
        row = next(iter(rows[name].values()))
        marked = f"**{name}**" if differs(item) else name
        lines.append(
            f"| {marked} | {row['about']} | {item['seeds']} | {100 * item['mean']:+.1f} | "
            f"{_interval(item['by_seed'])} | {_interval(item['by_picture'])} |"
        )
    return "\n".join(lines) + "\n\nBold: both intervals leave out no difference at all.\n"


def _interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"[{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def table(rows: Rows, columns: tuple[Column, ...]) -> str:
    """Mean over seeds ± standard deviation of each figure."""
    lines = [
        f"| | {' | '.join(column.name for column in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name, found in rows.items():
        cells = []
        for column in columns:
            some = np.array(values(found, column))
            if np.isnan(some).any():
                cells.append("–")
                continue
            text = column.text(float(some.mean()))
            cells.append(f"{text} ± {column.text(float(some.std(ddof=1)))}" if len(some) > 1 else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def legend(columns: tuple[Column, ...]) -> str:
    """What the columns are."""
    return "; ".join(f"*{column.name}*: {column.about}" for column in columns if column.about) + "."


def codes(rows: Rows) -> str:
    """How connectors use the rows that they mix or choose."""
    lines = [
        "| | rows used (perplexity) | rows a token mixes (perplexity) | dead rows |",
        "|---|---|---|---|",
    ]
    for name, found in rows.items():
        if mean := _rows_used(found):
            lines.append(
                f"| {name} | {mean['perplexity']:.1f} | {mean['token_perplexity']:.1f} | {100 * mean['dead']:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def prices(rows: Rows) -> str:
    """Parameters, floating-point operations, speed, time."""
    base = rows[BASE][min(rows[BASE])]["measured"]["cost"]
    lines = [
        "| | parameters | GFLOP a forward pass | against linear | pictures/s | training, min |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        cost = next(iter(found.values()))["measured"]["cost"]
        speed = np.mean([row["measured"]["cost"]["pictures_a_second"] for row in found.values()])
        minutes = np.mean([row["training"]["seconds"] for row in found.values()]) / 60
        lines.append(
            f"| {name} | {cost['parameters']:,} | {cost['flops'] / 1e9:.1f} | "
            f"{cost['parameters'] / base['parameters']:.2f}×, {cost['flops'] / base['flops']:.2f}× | {speed:.0f} | "
            f"{minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def ledger(rows: Rows) -> str:
    """Which config made which row, when, with what."""
    lines = ["| row | config | steps | seconds | jax | date |", "|---|---|---|---|---|---|"]
    for name, found in rows.items():
        for seed, row in sorted(found.items()):
            versions, took = row["versions"], row["training"]["seconds"] + row["measured"]["seconds"]
            lines.append(
                f"| {name}-{seed} | `{row['config_hash']}` | {row['training']['steps']} | "
                f"{took:.0f} | {versions['jax']} | {versions['date']} |"
            )
    return "\n".join(lines) + "\n"


def as_html(text: str, docs: Path) -> str:
    """The page in one file: figures are inside it."""
    import markdown

    body = markdown.markdown(text, extensions=["tables"])

    def inside(match: re.Match[str]) -> str:
        data = base64.b64encode((docs / match.group(1)).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    return PAGE.format(body=re.sub(r'src="([^":]+\.png)"', inside, body))
