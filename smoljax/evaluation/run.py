"""One evaluation from end to end: data by name, a task by name, predictions to a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smoljax.data.records import Source
from smoljax.errors import SmoljaxError, UsageError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.samples import open_records
from smoljax.evaluation.tasks.ask import quiet
from smoljax.evaluation.tasks.caption import caption
from smoljax.evaluation.tasks.grounding import grounding
from smoljax.evaluation.tasks.loss import loss
from smoljax.evaluation.tasks.retrieval import retrieval
from smoljax.evaluation.tasks.vqa import vqa
from smoljax.grounding.locate import location_count
from smoljax.vlm import VLM

TASKS: dict[str, Callable[[VLM, Source, EvalConfig, Progress], Result]] = {
    "vqa": vqa,
    "caption": caption,
    "retrieval": retrieval,
    "grounding": grounding,
    "loss": loss,
}


def check_task(task: str, config: EvalConfig) -> None:
    """UsageError for an unknown task, or options that it does not take."""
    if task not in TASKS:
        raise UsageError(f"no task {task!r}; known: {', '.join(TASKS)}")
    if config.kinds and task != "vqa":
        raise UsageError(f"kinds belong to the task vqa, not to {task}")


def evaluate(
    vlm: VLM,
    data: str,
    task: str,
    config: EvalConfig | None = None,
    *,
    mapping: Any = None,
    data_dir: str | Path | None = None,
    progress: Progress = quiet,
) -> Result:
    """Evaluates a model on a data set.

    Args:
      vlm: a loaded model.
      data: "tfds:NAME[/CONFIG][:SPLIT]" or a .jsonl file.
      task: a key of `TASKS`.
      config: limits and options.
      mapping: a registered mapping's name or a function, in place of the data set's own.
      data_dir: where TFDS keeps prepared data.
      progress: told of every picture done.

    Raises:
      UsageError: no such task, data or kind.
      SmoljaxError: the data is missing, broken or has nothing for this task.
    """
    config = config or EvalConfig()
    check_task(task, config)
    source = open_records(
        data,
        locations=location_count(vlm.require_processor().tokenizer),
        captions=task in ("caption", "retrieval"),
        data_dir=data_dir,
        mapping=mapping,
        on_error=config.on_error,
    )
    result = TASKS[task](vlm, source, config, progress)
    result.skipped.update(source.skipped)
    return result


def write_predictions(path: Path, result: Result) -> None:
    """One JSON object a sample and line; SmoljaxError where the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for line in result.predictions:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise SmoljaxError(f"{path}: {error.strerror}") from error
