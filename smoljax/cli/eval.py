"""`smoljax eval`: metrics of a model on a data set, with their intervals."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError

if TYPE_CHECKING:
    from smoljax.evaluation.config import Progress, Result


def evaluate(
    model: common.ModelOption,
    data: Annotated[
        str,
        typer.Option("--data", "-d", metavar="DATA", help="tfds:NAME[/CONFIG][:SPLIT], or a .jsonl file."),
    ],
    task: Annotated[
        str,
        typer.Option("--task", "-t", metavar="vqa|caption|retrieval|grounding|loss", help="What to measure."),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many pictures.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a batch.", show_default="what fits")
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Grey pictures: what the questions alone give away.")
    ] = False,
    kinds: Annotated[
        str, typer.Option(metavar="K,K,…", help="vqa: only questions of these kinds.", show_default="all")
    ] = "",
    split_by: Annotated[
        str, typer.Option(metavar="KEY", help="vqa: the key of a record's meta that parts the accuracy.")
    ] = "kind",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest answer.", show_default="by task: 8 to 96")
    ] = None,
    pointing: Annotated[
        int, typer.Option(min=0, help="grounding: play the pointing game for so many boxes; 0: none.")
    ] = 200,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="F.jsonl", help="Write every sample and its answer here.", show_default=False),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count records that cannot be used.")
    ] = False,
    mapping: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A registered mapping for a TFDS data set.",
            show_default="the data set's own",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where TFDS keeps prepared data.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap's draws.")] = 0,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    dtype: common.DtypeOption = None,
    weights: common.WeightsOption = None,
    cache: common.CacheOption = None,
    json: common.JsonOption = False,
) -> None:
    """Measure a model on data: every figure with its 95 % interval.

    Example: `smoljax eval -m smolvlm-nano -d tfds:scenes:test -t vqa --limit 200`
    """
    from smoljax.evaluation.config import EvalConfig
    from smoljax.evaluation.run import check_task, write_predictions
    from smoljax.evaluation.run import evaluate as run
    from smoljax.models import enable_compilation_cache, load

    config = EvalConfig(
        limit=limit,
        batch_size=batch_size,
        blind=blind,
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        split_by=split_by,
        max_new_tokens=max_new_tokens,
        pointing=pointing,
        seed=seed,
        longest_edge=longest_edge,
        split=False if no_split else None,
        on_error="skip" if skip_bad else "raise",
    )
    check_task(task, config)
    if predictions is not None and not predictions.parent.is_dir():
        raise UsageError(f"{predictions}: the folder {predictions.parent} does not exist")
    enable_compilation_cache()
    vlm = load(model, dtype=dtype, weights=weights, cache=cache)  # type: ignore[arg-type]
    started = time.perf_counter()
    with _bar(task) as progress:
        result = run(
            vlm,
            data,
            task,
            config,
            mapping=mapping,
            data_dir=data_dir,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    if predictions is not None:
        write_predictions(predictions, result)
    for number, why in list(result.skipped.items())[:5]:
        common.note(f"note: record {number} left out: {why}")
    if len(result.skipped) > 5:
        common.note(f"note: {len(result.skipped)} records left out in all")
    if vlm.untrained:
        common.note(f"note: {model} is untrained (random weights): these figures mean nothing")
    if json:
        common.print_json(_report(result, model, data, blind, seconds))
    else:
        _print(result, seconds)


def _report(result: "Result", model: str, data: str, blind: bool, seconds: float) -> dict[str, Any]:
    return {
        "task": result.task,
        "n": result.n,
        "metrics": {name: interval.as_dict() for name, interval in result.metrics.items()},
        "model": model,
        "data": data,
        "blind": blind,
        "skipped": len(result.skipped),
        "seconds": round(seconds, 2),
    }


def _print(result: "Result", seconds: float) -> None:
    from rich.table import Table

    table = Table("metric", box=None, header_style="bold", pad_edge=False)
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for name, found in result.metrics.items():
        table.add_row(name, f"{found.value:.4f}", f"{found.low:.4f} – {found.high:.4f}", f"{found.n:,}")
    common.console().print(table)
    common.note(f"{result.task}: {result.n:,} samples in {seconds:.1f} s")


@contextmanager
def _bar(task: str) -> Iterator["Progress"]:
    """A progress bar on standard error; where no person is looking, a line every half minute."""
    if not sys.stderr.isatty():
        yield _Lines(task).show
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures")]
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        shown = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


class _Lines:
    """Progress in lines, not too many."""

    def __init__(self, task: str) -> None:
        self.task, self.last = task, time.monotonic()

    def show(self, done: int, total: int) -> None:
        if time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            common.note(f"{self.task}: {done:,} of {total:,} pictures")
