"""Where a named thing is: boxes from location tokens, and whether the answer's heat map points at it."""

from typing import Any

from smoljax.data.records import Source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.metrics.boxes import iou, points_at
from smoljax.evaluation.samples import Item, Question, grounding_item, size_of
from smoljax.evaluation.tasks.ask import Tally, ask, quiet
from smoljax.generation.options import Generation
from smoljax.grounding import relevances
from smoljax.grounding.locate import location_count
from smoljax.processing.locations import find_boxes
from smoljax.processing.processor import Sample
from smoljax.vlm import VLM

#: Four location tokens, the token that ends the turn, and room for a blank or a word; else a short sentence.
MAX_NEW_TOKENS, MAX_NEW_WORDS = 8, 24
_POINTING_ROWS = 16

_Game = tuple[Item, Question, list[int], dict[str, Any]]  # …, the answer's tokens, its prediction


def grounding(vlm: VLM, source: Source, config: EvalConfig, progress: Progress = quiet) -> Result:
    """Asks for the place of every box by its label.

    Args:
      vlm: the model. One without location tokens gives no boxes; the pointing game is played all the same.
      source: records with boxes (`smoljax.evaluation.samples.open_records`).
      config: `pointing` bounds the pointing game, which costs about three forward passes a box.
      progress: told of every picture done.

    Returns:
      Metrics "iou@0.5" (share of boxes whose first answered box overlaps by half or more), "mean_iou" (no box
      answered: 0), "answered" (share with a box at all), "pointing" (the heat map of the model's own answer has its
      peak inside the box).

    Raises:
      SmoljaxError: no record has a box, or nothing could be measured.
    """
    bins = location_count(vlm.require_processor().tokenizer)
    tally = Tally(config)
    predictions: list[dict[str, Any]] = []
    games: list[_Game] = []
    room = MAX_NEW_TOKENS if bins else MAX_NEW_WORDS
    for place, (item, answered) in enumerate(ask(vlm, source, grounding_item, room, config, progress)):
        width, height = size_of(item.images[0]) if answered else (0, 0)
        for number, (question, text, generation) in enumerate(answered):
            assert question.box is not None
            line = {
                "id": item.id,
                "label": question.accepted[0],
                "box": list(question.box),
                "prediction": text,
            }
            if bins:
                boxes = find_boxes(text, width, height, bins)
                overlap = iou(boxes[0], question.box) if boxes else 0.0
                tally.add("iou@0.5", item.picture, float(overlap >= 0.5))
                tally.add("mean_iou", item.picture, overlap)
                tally.add("answered", item.picture, float(bool(boxes)))
                line |= {"predicted_box": list(boxes[0]) if boxes else None, "iou": overlap}
            predictions.append(line)
            # One box a picture, so that as many pictures as possible are seen.
            if len(games) < config.pointing and number == place % len(answered):
                games.append((item, question, _explained(vlm, generation), line))
    if not predictions:
        raise SmoljaxError("the data holds no boxes to locate")
    for start in range(0, len(games), _POINTING_ROWS):
        group = games[start : start + _POINTING_ROWS]
        for (item, *_, line), hit in zip(group, _play(vlm, group, config), strict=True):
            tally.add("pointing", item.picture, hit)
            line["pointing"] = hit
    metrics = tally.means()
    if not metrics:
        raise SmoljaxError(
            "this model has no location tokens (<loc_0>, …), so only the pointing game can be played; "
            "let pointing be more than 0"
        )
    return Result("grounding", len(predictions), metrics, predictions)


def _explained(vlm: VLM, generation: Generation) -> list[int]:
    """The answer's tokens without the one that ends it; that one alone where there is no other."""
    ids = [token for token in generation.token_ids if token not in vlm.generator.stop_ids]
    return ids or generation.token_ids


def _play(vlm: VLM, games: list[_Game], config: EvalConfig) -> list[float]:
    """1.0 for each game whose heat map has its peak in the box."""
    samples = [Sample(messages=question.messages, images=list(item.images)) for item, question, *_ in games]
    batch = vlm.require_processor().batch(samples, longest_edge=config.longest_edge, split=config.split)
    found = relevances(vlm, batch, [ids for *_, ids, _ in games])
    hits = []
    for (item, question, *_), relevance in zip(games, found, strict=True):
        assert question.box is not None
        hits.append(points_at(relevance.heat(*size_of(item.images[0])), question.box))
    return hits
