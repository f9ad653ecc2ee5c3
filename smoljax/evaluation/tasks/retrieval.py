"""The picture that fits a text, and the text that fits a picture, among all of the data."""

import numpy as np

from smoljax.data.records import Record, Source
from smoljax.embedding import embed_images, embed_texts
from smoljax.errors import SmoljaxError
from smoljax.evaluation.config import EvalConfig, Progress, Result
from smoljax.evaluation.metrics.bootstrap import bootstrap
from smoljax.evaluation.metrics.retrieval import ranks, recall_at
from smoljax.evaluation.samples import blinded, pair_of
from smoljax.evaluation.tasks.ask import quiet, usable
from smoljax.processing.images import ImageInput
from smoljax.vlm import VLM

DEPTHS = (1, 5, 10)
_AT_ONCE = 256


def retrieval(vlm: VLM, source: Source, config: EvalConfig, progress: Progress = quiet) -> Result:
    """Ranks all texts for each picture and all pictures for each text by the cosine of their vectors.

    Args:
      vlm: the model (`smoljax.embedding`).
      source: records with a picture and a text each (`smoljax.evaluation.samples.pair_of`).
      config: `limit` says among how many; intervals draw the queries, the gallery stays.
      progress: told of every picture done.

    Returns:
      Metrics "image_to_text/R@1", "/R@5", "/R@10", "text_to_image/R@1", … Equal texts are interchangeable, other ties
      count against the model (`smoljax.evaluation.metrics.retrieval.ranks`).

    Raises:
      SmoljaxError: fewer than two pairs; a record without a picture.
    """
    names: list[str] = []
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    pending: list[ImageInput] = []

    def flush() -> None:
        rows = config.batch_size or 32
        vectors.append(embed_images(vlm, pending, rows, longest_edge=config.longest_edge, split=config.split))
        pending.clear()

    def pair(record: Record) -> tuple[str, ImageInput, str]:
        return record.id, *pair_of(record)

    for _, (name, image, text) in usable(source, config, pair, progress):
        names.append(name)
        texts.append(text)
        pending.append(blinded([image])[0] if config.blind else image)
        if len(pending) == _AT_ONCE:
            flush()
    if pending:
        flush()
    if len(names) < 2:
        raise SmoljaxError("retrieval needs at least two pictures with a text each")
    similarity = np.concatenate(vectors) @ embed_texts(vlm, texts, config.batch_size or 32).T
    places = {
        "image_to_text": (similarity, ranks(similarity, texts)),
        "text_to_image": (similarity.T, ranks(similarity.T, texts)),
    }
    metrics = {
        f"{name}/R@{depth}": bootstrap(recall_at(found, depth), config.seed, config.draws)
        for name, (_, found) in places.items()
        for depth in DEPTHS
    }
    predictions = []
    for row, name in enumerate(names):
        line: dict[str, object] = {"id": name, "text": texts[row]}
        for key, (scores, found) in places.items():
            best = int(np.argmax(scores[row]))
            line[key] = {"rank": int(found[row]) + 1, "best": names[best], "score": float(scores[row, best])}
        predictions.append(line)
    return Result("retrieval", len(names), metrics, predictions)
