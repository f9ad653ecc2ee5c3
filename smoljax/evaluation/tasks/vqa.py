"""Questions and short answers: how many are right, over all and by kind."""

from typing import Any

from smoljax.data.records import Source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.metrics.answers import exact_match, reading_match, vqa_soft
from smoljax.evaluation.samples import check_kinds, vqa_item
from smoljax.evaluation.tasks.ask import Tally, ask, quiet
from smoljax.vlm import VLM

MAX_NEW_TOKENS = 24
#: Kinds of `scenes` that are reported together beside each alone.
OBJECT_KINDS = frozenset(("existence", "count", "colour", "shape", "size", "texture"))
READING = "reading"


def vqa(vlm: VLM, source: Source, config: EvalConfig, progress: Progress = quiet) -> Result:
    """Asks every question of every record.

    Args:
      vlm: the model.
      source: records (`smoljax.evaluation.samples.open_records`).
      config: how; intervals are by picture, since questions about one picture are not independent.
      progress: told of every picture done.

    Returns:
      Metrics "exact" and "soft" over all; "exact/KIND" for each kind; "exact/objects" over existence, count, colour,
      shape, size and texture where all of these occur; "exact/unseen_pair" over questions about pairs kept out of
      training; "reading", letter by letter, over questions of kind "reading".

    Raises:
      UsageError: a kind that never occurs.
      SmoljaxError: there is no question; a record cannot be used.
    """
    tally = Tally(config)
    seen: set[str] = set()
    predictions: list[dict[str, Any]] = []
    kinds = frozenset(config.kinds)

    def make(record: Any) -> Any:
        item = vqa_item(record, (), config.split_by)
        seen.update(question.kind for question in item.questions)
        return vqa_item(record, kinds, config.split_by) if kinds else item

    for item, answered in ask(vlm, source, make, MAX_NEW_TOKENS, config, progress):
        for question, text, generation in answered:
            exact, soft = exact_match(text, question.accepted), vqa_soft(text, question.accepted)
            tally.add("exact", item.picture, exact)
            tally.add("soft", item.picture, soft)
            if question.kind:
                tally.add(f"exact/{question.kind}", item.picture, exact)
            if question.kind in OBJECT_KINDS:
                tally.add("exact/objects", item.picture, exact)
            if question.unseen_pair:
                tally.add("exact/unseen_pair", item.picture, exact)
            if question.kind == READING:
                tally.add(READING, item.picture, reading_match(text, question.accepted))
            line = {"id": item.id, "question": question.text, "kind": question.kind or None}
            line |= {"prediction": text, "answers": list(question.accepted), "exact": exact, "soft": soft}
            line |= {"unseen_pair": question.unseen_pair, "finish_reason": generation.finish_reason}
            predictions.append(line)
    check_kinds(kinds, seen)
    if not predictions:
        raise SmoljaxError("the data holds no question to ask")
    metrics = tally.means()
    if not seen >= OBJECT_KINDS or (kinds and not kinds >= OBJECT_KINDS):
        metrics.pop("exact/objects", None)
    order = ["exact", "soft", "exact/objects", READING]
    ordered = [name for name in order if name in metrics] + sorted(metrics.keys() - set(order))
    return Result("vqa", len(predictions), {name: metrics[name] for name in ordered}, predictions)
