"""`smoljax bench`: speed side by side with the peers found installed."""

from pathlib import Path
from typing import Annotated

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def bench(
    what: Annotated[
        str,
        typer.Option(
            metavar="W,W,…",
            help="Figures or groups: decode, prefill, first_token, train, …",
            show_default="all",
        ),
    ] = "",
    peers: Annotated[
        str,
        typer.Option(metavar="P,P,…", help="transformers, llama.cpp, or none.", show_default="installed"),
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each side, in turn.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every side.", show_default="all cores")
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the weights here for the next time.", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="F.md", help="Write the table here.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="F.png", help="Draw the ratios here.", show_default=False)
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Measure speed on this machine, beside transformers and llama.cpp where they are installed.

    Same weights (random ones of SmolVLM-256M's geometry, and SmolLM2-135M), same prompts, same threads, calls in turn;
    the machine's own limits are measured along. Nothing else should be running.

    Example: `smoljax bench --what decode --repeats 3`
    """
    from smoljax.bench import report
    from smoljax.bench.run import PEERS, check, chosen, found_peers, measure, tokenizer_is_here

    wanted = tuple(name.strip() for name in peers.split(",") if name.strip())
    if unknown := set(wanted) - {"none", *PEERS}:
        raise UsageError(f"--peers knows {', '.join(PEERS)} and none, not {', '.join(sorted(unknown))}")
    there = found_peers()
    if missing := [name for name in wanted if name != "none" and name not in there]:
        raise UsageError(f"{', '.join(missing)} is not installed here")
    for path in (markdown, plot):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist")
    figures = chosen(tuple(name.strip() for name in what.split(",") if name.strip()), wanted or tuple(there))
    if not figures:
        raise UsageError("nothing to measure: the peers of these figures are not installed")
    tokenizer_is_here()
    result = measure(figures, repeats, threads, workdir, common.note)
    if markdown is not None:
        markdown.write_text(report.markdown(result))
    if plot is not None:
        report.plot(result, plot)
    if json:
        common.print_json(result)
    else:
        _print(result)
    check(result)


def _print(result: dict[str, object]) -> None:
    from rich.table import Table

    from smoljax.bench import report

    rows: list[dict[str, object]] = result["rows"]  # type: ignore[assignment]
    table = Table("figure", box=None, header_style="bold", pad_edge=False)
    for column in ("smoljax", "peer", "ratio", "wanted"):
        table.add_column(column, justify="right")
    table.add_column("beside")
    table.add_column("share of the limit")
    for row in rows:
        values = (report.shown(row[key], str(row["unit"])) for key in ("ours", "peer"))  # type: ignore[arg-type]
        table.add_row(
            str(row["title"]),
            *values,
            f"{row['ratio']:.2f}×",
            report.verdict(row),
            str(row["peer_name"]),
            report.share(row),
        )
    common.console().print(table)
    limits: dict[str, float] = result["limits"]  # type: ignore[assignment]
    common.note(f"this machine: {limits['gflops']:.0f} GFLOP/s, {limits['gb_s']:.1f} GB/s")
