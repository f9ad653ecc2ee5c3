"""What a run leaves to read: `metrics.jsonl`, TensorBoard events, and a progress bar."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends one JSON object a line, and the same numbers to TensorBoard where tensorboardX is installed.

    Args:
      workdir: of the run.
      step: lines behind this step are dropped first: a killed run may have written past its last checkpoint.
      write: False on all hosts but the first: nothing is written.
    """

    def __init__(self, workdir: Path, step: int, *, write: bool = True) -> None:
        self._file: Any = None
        self._board: Any = None
        self.path = workdir / METRICS
        if not write:
            return
        if self.path.exists():
            kept = [line for line in _lines(self.path) if line["step"] <= step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")
        self._board = _board(workdir / "tensorboard", step)

    def write(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """One line: step, kind ("train" or "validation") and the values."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Closes both."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def last_logged(workdir: Path, name: str) -> float:
    """A value of the last training line of a run's metrics; NaN where there is none."""
    path = workdir / METRICS
    found = [line[name] for line in _lines(path) if line["kind"] == "train"] if path.exists() else []
    return found[-1] if found else math.nan


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that was cut off by a kill."""
    found = []
    for line in path.read_text().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class Bar:
    """A rich progress bar on a terminal; elsewhere a line every half minute. Standard error either way."""

    def __init__(self, name: str, steps: int, done: int, shown: bool) -> None:
        self._shown = shown
        self._steps = steps
        self._first = done
        self._started = self._spoken = time.monotonic()
        self._progress = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(name, total=steps, completed=done, values="compiling")

    def __enter__(self) -> "Bar":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the step and the newest values."""
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=step, values=text)
        elif self._shown and (time.monotonic() - self._spoken > 30 or step == self._steps):
            self._spoken = time.monotonic()
            rate = (self._spoken - self._started) / max(step - self._first, 1)
            left = int(rate * (self._steps - step))
            print(
                f"step {step}/{self._steps}  {text}  left {left // 60}:{left % 60:02d}",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
