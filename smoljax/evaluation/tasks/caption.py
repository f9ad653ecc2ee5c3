"""Descriptions: against reference captions by their words, and on `scenes` by what they say."""

from typing import Any

import numpy as np

from smoljax.data.records import Source
from smoljax.errors import SmoljaxError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.metrics.bleu import bleu, bleu_counts
from smoljax.evaluation.metrics.cider import cider_d
from smoljax.evaluation.metrics.facts import f1
from smoljax.evaluation.metrics.rouge import rouge_l
from smoljax.evaluation.metrics.words import words
from smoljax.evaluation.samples import caption_item
from smoljax.evaluation.scene_facts import COUNTED, SHARES, score_description
from smoljax.evaluation.tasks.ask import Tally, ask, quiet
from smoljax.vlm import VLM

MAX_NEW_TOKENS = 96


def caption(vlm: VLM, source: Source, config: EvalConfig, progress: Progress = quiet) -> Result:
    """Asks for a description of every record's pictures.

    Args:
      vlm: the model.
      source: records with reference captions (`smoljax.evaluation.samples.caption_item`).
      config: how.
      progress: told of every picture done.

    Returns:
      Metrics "cider_d" (0 to 10), "bleu_4" and "rouge_l" (0 to 1); for pictures of `scenes` also those of
      `smoljax.evaluation.scene_facts`: "object_f1", "attribute_f1", "object_attribute_f1", "relation_f1",
      "background", "text_f1", "all_objects". A figure without a fact in the data is left out.

    Raises:
      SmoljaxError: there is nothing to describe, or a record has no reference.
    """
    tally = Tally(config)
    predictions: list[dict[str, Any]] = []
    pictures: list[str] = []
    candidates: list[list[str]] = []
    references: list[list[list[str]]] = []
    for item, answered in ask(vlm, source, caption_item, MAX_NEW_TOKENS, config, progress):
        pictures.append(item.picture)
        ((question, text, generation),) = answered
        candidates.append(words(text))
        references.append([words(reference) for reference in question.accepted])
        tally.add("bleu_4", item.picture, bleu_counts(candidates[-1], references[-1]))
        tally.add("rouge_l", item.picture, rouge_l(candidates[-1], references[-1]))
        line = {"id": item.id, "prediction": text, "references": list(question.accepted)}
        line |= {
            "rouge_l": rouge_l(candidates[-1], references[-1]),
            "finish_reason": generation.finish_reason,
        }
        if item.facts:
            found = score_description(text, item.facts)
            for name, value in found.items():
                tally.add(name, item.picture, value)
            line |= {name: np.asarray(value).tolist() for name, value in found.items()}
        predictions.append(line)
    if not predictions:
        raise SmoljaxError("the data holds nothing to describe")
    scores = cider_d(candidates, references)
    for picture, score, line in zip(pictures, scores, predictions, strict=True):
        tally.add("cider_d", picture, float(score))
        line["cider_d"] = float(score)
    metrics = {
        "cider_d": tally.mean("cider_d"),
        "bleu_4": tally.ratio("bleu_4", bleu),
        "rouge_l": tally.mean("rouge_l"),
    }
    metrics |= {name: tally.ratio(name, f1) for name in COUNTED if tally.any(name)}
    metrics |= {name: tally.mean(name) for name in SHARES if name in tally}
    return Result("caption", len(predictions), metrics, predictions)
