"""One trained model → one row of the report: every measurement, as JSON.

    python -m experiments.embedding_sharing.measure MODEL --out ROW.json [--pictures 400]

`MODEL` may be any checkpoint that smoljax reads, released ones included.
"""

import argparse
import hashlib
import importlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import smoljax
from experiments.commands import machine, write_json
from experiments.embedding_sharing.pictures import NOTHING, Pictures, answers_record, pictures, word_ids
from experiments.embedding_sharing.variants import known
from smoljax.analysis import capture as captures
from smoljax.analysis import codes, geometry, lens, probes, retrieval, similarity
from smoljax.analysis.changes import CHANGES
from smoljax.analysis.cost import cost
from smoljax.analysis.forced import conversations, forced_answers
from smoljax.analysis.gradients import gradient_split, split_summary
from smoljax.data.encode import encode
from smoljax.data.packing import RowShape, batch_arrays
from smoljax.data.scenes.vocabulary import COLOURS, SHAPES
from smoljax.training.objectives.sharing import tie_distance
from smoljax.vlm import VLM

SPLIT = "test"
QUESTIONS = 8
TOP = 5
SAMPLE = 1500  # vectors a cloud in measures that compare all pairs
SHOWN = 6  # pictures whose lens is drawn
MAPPED = 200  # vectors of each kind on the map


def measure(vlm: VLM, count: int) -> dict[str, Any]:
    """Every measurement of a model over `count` pictures."""
    drawn = pictures(SPLIT, count)
    batches = list(answer_batches(vlm, count))
    seen = captures.capture(vlm, drawn.images, drawn.captions)
    gap = seen.text[0].mean(0) - seen.image[0].reshape(-1, seen.image.shape[-1]).mean(0)
    return {
        "task": task(vlm, batches, gap),
        "space": space(vlm, seen, drawn),
        "gradients": gradients(vlm, batches[0]),
        "cost": cost(vlm.config, batches[0]) | speed(vlm, batches[0]),
    }


def answer_batches(vlm: VLM, count: int, rows: int = 16) -> Any:
    """Batches of pictures with their conversations, and the kinds of these in order."""
    processor = vlm.require_processor()
    boxes = int(processor.tokenizer.token_id("<loc_0>") is not None)  # no places without location tokens
    for start in range(0, count, rows):
        numbers = range(start, min(start + rows, count))
        records = [answers_record(number, SPLIT, QUESTIONS, boxes) for number in numbers]
        encoded = [
            encode(
                record,
                processor,
                loss_on="answers",
                split=False,
                longest_edge=processor.config.image.tile_size if processor.config.image else None,
            )
            for record in records
        ]
        tokens = -(-max(item.tokens for item in encoded) // 128) * 128
        assert processor.config.image is not None
        shape = RowShape(tokens, 1, 1, processor.config.image.tile_size, processor.pad_id)
        batch = batch_arrays([[item] for item in encoded], shape)
        batch = {name: value for name, value in batch.items() if name != "patches"}
        batch = {
            name: np.pad(value, [(0, rows - len(value))] + [(0, 0)] * (value.ndim - 1))
            for name, value in batch.items()
        }
        yield {**batch, "kinds": [record.meta["kinds"] for record in records]}


def task(vlm: VLM, batches: list[dict[str, Any]], gap: np.ndarray) -> dict[str, Any]:
    """What is answered rightly: as it is, and with image tokens changed; by picture for paired tests."""
    found: dict[str, Any] = {}
    half = max(1, len(batches) // 2)
    for change in CHANGES:
        if change != "none" and vlm.config.sharing.image_attention == "cross" and change == "move":
            continue
        part = batches if change == "none" else batches[:half]
        found[change] = _answers(vlm, part, change, gap)
    # On the same pictures as the changes are made on.
    same = np.array(found["none"]["by_picture"][: sum(len(batch["kinds"]) for batch in batches[:half])])
    found["none"]["accuracy_of_half"] = float(same[:, 0].sum() / same[:, 1].sum())
    return found


def _answers(vlm: VLM, batches: list[dict[str, Any]], change: str, gap: np.ndarray) -> dict[str, Any]:
    right: dict[str, list[int]] = {}
    by_picture: list[list[float]] = []
    for number, batch in enumerate(batches):
        arrays = {name: value for name, value in batch.items() if name != "kinds"}
        key = jax.random.key(number)
        learned, hits, loss = forced_answers(vlm.config, vlm.params, arrays, change=change, key=key, move=gap)
        talks = conversations(learned, hits, loss, batch["segment_ids"], batch["branch_ids"])
        for kinds, row in zip(batch["kinds"], talks, strict=False):
            asked, got, total, tokens = 0, 0, 0.0, 0
            for kind, (whole, lost, length) in zip(kinds, row, strict=True):
                right.setdefault(kind, []).append(int(whole))
                if kind == "caption":
                    total, tokens = lost, length
                elif kind != "locate":
                    asked, got = asked + 1, got + int(whole)
            by_picture.append([got, asked, round(total, 4), tokens])
    table = np.array(by_picture)
    return {
        "accuracy": float(table[:, 0].sum() / table[:, 1].sum()),
        "by_kind": {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())},
        "asked": {kind: len(hits) for kind, hits in sorted(right.items())},
        "caption_loss": float(table[:, 2].sum() / table[:, 3].sum()),
        "by_picture": by_picture if change == "none" else [],
    }


def space(vlm: VLM, seen: captures.Captured, drawn: Pictures) -> dict[str, Any]:
    """The shared space, by layer where a layer has image tokens."""
    layers, N, Q, D = seen.image.shape
    side = round(Q**0.5)
    objects = drawn.objects(side)
    shapes, colours = drawn.names(objects)
    shown = (objects != NOTHING).reshape(-1)
    true = _true_words(vlm, shapes, colours)
    rng = np.random.default_rng(0)
    tokens = rng.permutation(N * Q)[:SAMPLE]
    words = rng.permutation(seen.text.shape[1])[:SAMPLE]
    places = np.arange(N * Q) % Q
    groups = np.arange(N * Q) // Q
    eps = vlm.config.text.rms_norm_eps
    neighbours = partial(similarity.mutual_knn, k=min(10, N - 1))
    rows = []
    for layer in range(layers):
        image = seen.image[layer].reshape(-1, D).astype(np.float64)
        text = seen.text[layer].astype(np.float64)
        pooled = seen.pooled(layer)
        row = {
            "layer": layer,
            "gap": geometry.centroid_gap(image, text),
            "norms_image": geometry.norms(image),
            "norms_text": geometry.norms(text),
            "anisotropy_image": geometry.anisotropy(image),
            "anisotropy_text": geometry.anisotropy(text),
            "rank_image": geometry.effective_rank(image[tokens]),
            "rank_text": geometry.effective_rank(text[words]),
            "frechet": geometry.frechet_distance(image, text),
            "energy": geometry.energy_distance(geometry.unit(image[tokens]), geometry.unit(text[words])),
            "separability": geometry.separability(
                image[tokens], text[words], groups[tokens], seen.text_ids[words]
            ),
            "cka": vars(similarity.calibrated(similarity.debiased_cka, *pooled, shuffles=50)),
            "knn": vars(similarity.calibrated(neighbours, *pooled, shuffles=50)),
            "retrieval": retrieval.pooled_retrieval(*pooled),
        }
        if layer in (0, layers // 2, layers - 1):
            row["probes"] = {
                "shape": probes.probe_accuracy(image[shown], shapes.reshape(-1)[shown], groups[shown]),
                "colour": probes.probe_accuracy(image[shown], colours.reshape(-1)[shown], groups[shown]),
                "row": probes.probe_accuracy(image, places // side, groups),
                "column": probes.probe_accuracy(image, places % side, groups),
            }
        normed = seen.normed(layer, eps).reshape(N * Q, D)[shown]
        row["lens"] = {
            "input": _hits(lens.nearest_rows(image[shown], seen.words, TOP), true),
            "logit": _hits(lens.nearest_rows(normed, seen.head, TOP, "dot"), true),
            "contextual": _hits(_contextual(seen, layer, image[shown], text), true),
        }
        rows.append(row)
    first = seen.image[0].reshape(-1, D)
    nearest = lens.nearest_rows(first, seen.words, 1)[:, 0]
    found = {
        "layers": rows,
        "tie": float(tie_distance(seen.words, seen.head)),
        "nearest_word_entropy": lens.word_entropy(nearest),
        "metrics": {
            metric: _hits(lens.nearest_rows(first[shown], seen.words, TOP, metric), true)
            for metric in ("cosine", "dot", "l2")
        },
        "shown": shown_lens(vlm, seen, nearest),
        "map": embedding_map(seen, shapes, colours),
    }
    if seen.codes is not None:
        found["codes"] = codes.code_use(seen.codes.reshape(N * Q, -1))
    return found


def _true_words(vlm: VLM, shapes: np.ndarray, colours: np.ndarray) -> list[frozenset[int]]:
    """The ids that name what each token that shows something shows: its shape or its colour."""
    tokenizer = vlm.require_processor().tokenizer
    shape_ids = [word_ids(tokenizer, name) for name in SHAPES]
    colour_ids = [word_ids(tokenizer, name) for name in COLOURS]
    pairs = zip(shapes.reshape(-1), colours.reshape(-1), strict=True)
    return [shape_ids[shape] | colour_ids[colour] for shape, colour in pairs if shape != NOTHING]


def _hits(found: np.ndarray, true: list[frozenset[int]]) -> dict[str, float]:
    return {
        "top1": lens.hit_rate(found[:, :1], true),
        "top1_null": lens.hit_rate_null(found[:, :1], true),
        f"top{TOP}": lens.hit_rate(found, true),
        f"top{TOP}_null": lens.hit_rate_null(found, true),
    }


def _contextual(
    seen: captures.Captured, layer: int, image: np.ndarray, text: np.ndarray, most: int = 4000
) -> np.ndarray:
    """The words whose hidden states in captions are nearest at this layer, each word counting once."""
    near = lens.nearest_rows(image, text[:most], 40)
    found = np.full((len(image), TOP), -1)
    for row, places in enumerate(seen.text_ids[near]):
        distinct = list(dict.fromkeys(places.tolist()))[:TOP]
        found[row, : len(distinct)] = distinct
    return found


def shown_lens(vlm: VLM, seen: captures.Captured, nearest: np.ndarray) -> list[dict[str, Any]]:
    """For a few pictures, the word that each image token is nearest to at the input, and by the logits at the end."""
    tokenizer = vlm.require_processor().tokenizer
    Q = seen.image.shape[2]
    normed = seen.normed(len(seen.image) - 1, vlm.config.text.rms_norm_eps)[:SHOWN]
    last = lens.nearest_rows(normed.reshape(-1, normed.shape[-1]), seen.head, 1, "dot").reshape(-1, Q)
    return [
        {
            "picture": index,
            "input": [tokenizer.decode([int(word)]) for word in nearest.reshape(-1, Q)[index]],
            "logit": [tokenizer.decode([int(word)]) for word in last[index]],
        }
        for index in range(len(last))
    ]


def embedding_map(seen: captures.Captured, shapes: np.ndarray, colours: np.ndarray) -> dict[str, Any]:
    """Image tokens that show something and the texts' words, at length one, on two principal components of both."""
    rng = np.random.default_rng(1)
    places = np.flatnonzero(colours.reshape(-1) != NOTHING)
    places = rng.permutation(places)[:MAPPED]
    ids = np.unique(seen.text_ids)[:MAPPED]
    image = seen.image[0].reshape(-1, seen.image.shape[-1])[places]
    both = geometry.unit(np.concatenate([image, seen.words[ids]]).astype(np.float64))
    centred = both - both.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    return {
        "image": flat[: len(image)].round(4).tolist(),
        "colour": colours.reshape(-1)[places].tolist(),
        "shape": shapes.reshape(-1)[places].tolist(),
        "words": flat[len(image) :].round(4).tolist(),
        "word_ids": ids.tolist(),
        "explained": (np.square(values[:2]) / np.square(values).sum()).round(4).tolist(),
    }


def gradients(vlm: VLM, batch: dict[str, Any]) -> dict[str, Any]:
    """Who teaches the word table, all rows and by kinds of words."""
    tokenizer = vlm.require_processor().tokenizer
    arrays = {name: value for name, value in batch.items() if name != "kinds"}
    used = np.unique(batch["input_ids"])
    named = {
        "colours": sorted(set().union(*(word_ids(tokenizer, name) for name in COLOURS))),
        "shapes": sorted(set().union(*(word_ids(tokenizer, name) for name in SHAPES))),
        "read": used,
        "never read": np.setdiff1d(np.arange(vlm.config.text.vocab_size), used),
    }
    classes = {name: np.asarray(ids, int) for name, ids in named.items()}
    return split_summary(gradient_split(vlm.config, vlm.params, arrays), classes)


def plain_text(vlm: VLM, text: str) -> dict[str, float]:
    """Loss of plain text without pictures, nats a token, and its perplexity; each paragraph on its own."""
    tokenizer = vlm.require_processor().tokenizer
    total, count = 0.0, 0
    for paragraph in filter(None, text.split("\n\n")):
        ids = np.array(tokenizer.encode(" ".join(paragraph.split())))[None]
        learned, _, loss = forced_answers(vlm.config, vlm.params, text_batch(vlm, ids))
        total, count = total + float(loss[learned].sum()), count + int(learned.sum())
    return {"loss": total / count, "perplexity": float(np.exp(total / count)), "tokens": count}


def text_batch(vlm: VLM, ids: np.ndarray, most: int = 256) -> dict[str, np.ndarray]:
    """A batch without pictures in which every token but the first is predicted; cut and padded to one shape."""
    ids = ids[:, :most]
    length = ids.shape[1]
    padded = np.zeros((1, most), np.int32)
    padded[:, :length] = ids
    real = np.arange(most)[None] < length
    tile = vlm.config.vision.image_size if vlm.config.vision else 0
    return {
        "input_ids": padded,
        "loss_mask": real,
        "segment_ids": real.astype(np.int32),
        "branch_ids": np.zeros((1, most), np.int32),
        "positions": np.arange(most, dtype=np.int32)[None],
        "pixel_values": np.zeros((1, 0, 3, tile, tile), np.float32),
        "tile_mask": np.zeros((1, 0), bool),
    }


def speed(vlm: VLM, batch: dict[str, Any], times: int = 3) -> dict[str, float]:
    """Pictures a second of a forward pass with all conversations, the best of a few."""
    arrays = {name: jnp.asarray(value) for name, value in batch.items() if name != "kinds"}
    best = float("inf")
    for _ in range(times + 1):
        started = time.perf_counter()
        forced_answers(vlm.config, vlm.params, arrays)
        best = min(best, time.perf_counter() - started)
    return {"pictures_a_second": round(len(batch["input_ids"]) / best, 1)}


def code() -> str:
    """Twelve digits of the source that measures: rows of other code are measured anew."""
    import smoljax.analysis as package

    here = Path(__file__)
    files = [*sorted(Path(package.__file__).parent.glob("*.py")), here, here.with_name("pictures.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="any checkpoint that smoljax reads")
    parser.add_argument("--out", type=Path, required=True, metavar="ROW.json")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--text", type=Path, help="plain text, paragraphs apart: what the model makes of it")
    args = parser.parse_args()
    known()  # connectors of one's own
    importlib.import_module("smoljax.models").enable_compilation_cache()
    started = time.perf_counter()
    vlm = smoljax.load(args.model, dtype="float32")
    row = {"model": args.model, "pictures": args.pictures, **measure(vlm, args.pictures)}
    if args.text:
        row["text"] = plain_text(vlm, args.text.read_text())
    row |= {"code": code(), "seconds": round(time.perf_counter() - started, 1), "machine": machine()}
    write_json(args.out, row)
    print(f"{args.out}: accuracy {row['task']['none']['accuracy']:.3f}, {row['seconds']} s")


if __name__ == "__main__":
    main()
