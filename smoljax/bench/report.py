"""Results as a Markdown table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def shown(value: float, unit: str) -> str:
    """A value with its unit, three significant figures."""
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def verdict(row: Mapping[str, Any]) -> str:
    """The target and whether it is reached."""
    if row["target"] is None:
        return "–"
    return f"{row['target']:g}× {'reached' if row['reached'] else 'missed'}"


def share(row: Mapping[str, Any]) -> str:
    """The part of the machine's limit that ours used."""
    if "vision_share" in row:
        return f"{row['vision_share']:.0%} of the matrix product in the patch encoder"
    return f"{row['memory_share']:.0%} of reading memory" if "memory_share" in row else "–"


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result, with what it was measured on."""
    limits, after = result["limits"], result["limits_after"]
    peers = "; ".join(result["peers"].values()) or "none found"
    machine = (
        f"{limits['gflops']:.0f} GFLOP/s and {limits['gb_s']:.1f} GB/s before, {after['gflops']:.0f} and "
        f"{after['gb_s']:.1f} after"
    )
    lines = [
        (
            f"{result['threads']} threads, medians of {result['repeats']} interleaved calls; peers: {peers}. The "
            f"machine itself: {machine}."
        ),
        "",
        "| figure | smoljax | beside | ratio | spread | wanted | share of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ours, theirs = (shown(row[side], row["unit"]) for side in ("ours", "peer"))
        low, high = min(row["ratios"]), max(row["ratios"])
        lines.append(
            f"| {row['title']} | {ours} | {row['peer_name']}: {theirs} | **{row['ratio']:.2f}×** | "
            f"{low:.2f}–{high:.2f} | {verdict(row)} | {share(row)} |"
        )
    return "\n".join(lines) + "\n"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Bars of the ratios with their spread, the wanted ones marked, as PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(reversed(result["rows"]))
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.2))
    places = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    spread = [
        [row["ratio"] - min(row["ratios"]) for row in rows],
        [max(row["ratios"]) - row["ratio"] for row in rows],
    ]
    away = [ratio - 1 for ratio in ratios]  # bars stand at 1, on a scale where twice and half are as far
    axes.set_xscale("log", base=2)
    axes.barh(list(places), away, left=1, color="#4c78a8", height=0.6)
    axes.errorbar(ratios, list(places), xerr=spread, fmt="none", ecolor="#999999")
    for place, row in zip(places, rows, strict=True):
        if row["target"] is not None:
            axes.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="#e45756", linewidth=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_yticks(list(places), [f"{row['title']}\nbeside {row['peer_name']}" for row in rows], fontsize=7)
    axes.set_xlabel("times as fast, or times less memory; red: wanted")
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
