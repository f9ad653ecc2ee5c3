"""What rounding weights or the cache costs: answers of the bundled model, perplexity and scores of SmolLM2-135M.

    python -m experiments.benchmarks.quantised --pictures 200 --out docs/benchmarks/quantised.json
    python -m experiments.benchmarks.speed_page

Every kind of weights runs with float32 activations, every kind of cache with float32 weights. The bundled model answers
and describes pictures of the `scenes` test split (`smoljax eval`); SmolLM2-135M reads
`experiments/benchmarks/prose.txt`, paragraphs of this project's pages as they were in November 2026, in windows of 512
tokens, each scored from its 64th token on. The error of a score is the largest of its kind over the first window,
against float32; agreement is how often the most likely word stays the same. To measure a cache, a window's first 64
tokens are read at once and the others one by one, as if they were decoded. Needs the fetched smollm2-135m.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.commands import write_json
from smoljax.evaluation.config import EvalConfig
from smoljax.evaluation.run import evaluate
from smoljax.models import enable_compilation_cache, load
from smoljax.nn.cache import init_cache, token_bytes
from smoljax.nn.smolvlm import forward
from smoljax.vlm import VLM

WEIGHTS = ("float32", "bfloat16", "int8", "int4")
CACHES = ("float32", "bfloat16", "int8")
WINDOW, CONTEXT = 512, 64
PROSE = Path(__file__).with_name("prose.txt")


def weight_bytes(params: Any) -> int:
    """Bytes of all weights."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def bundled(vlm: VLM, pictures: int) -> dict[str, Any]:
    """Exact answers and CIDEr-D of smolvlm-nano, with their intervals."""
    config = EvalConfig(limit=pictures)
    found: dict[str, Any] = {}
    for task, name in (("vqa", "exact"), ("caption", "cider_d")):
        metrics = evaluate(vlm, "tfds:scenes:test", task, config).metrics
        found[name] = metrics[name].as_dict()
    return found


def windows(vlm: VLM) -> np.ndarray:
    """The prose, cut into windows [n, WINDOW] of tokens."""
    ids = np.asarray(vlm.require_processor().tokenizer.encode(PROSE.read_text()), np.int32)
    return ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)


def at_once(vlm: VLM, ids: np.ndarray) -> np.ndarray:
    """Scores [T, V] of one window [T], read in one pass without a cache."""
    return vlm.logits({"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), bool)})[0]


def one_by_one(vlm: VLM, ids: np.ndarray) -> np.ndarray:
    """Scores [n, T - CONTEXT, V] of the windows [n, T] from their token CONTEXT - 1 on, read through the cache."""
    config = vlm.config

    @jax.jit
    def run(params: Any, ids: jax.Array) -> jax.Array:
        cache = init_cache(config.text, config.compute, len(ids), WINDOW)
        out = forward(config, params, {"input_ids": ids[:, :CONTEXT]}, cache, "last")

        def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            out = forward(config, params, {"input_ids": token[:, None]}, cache, "last")
            return out.cache, out.logits[:, 0]

        _, scores = jax.lax.scan(step, out.cache, ids[:, CONTEXT:-1].T)
        return jnp.concatenate([out.logits, scores.swapaxes(0, 1)], axis=1)

    return np.asarray(run(vlm.packed, ids))


def losses(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """-log p of the tokens [T], given the scores [T, V] of the places before them."""
    wide = scores.astype(np.float64)
    top = wide.max(axis=-1)
    total = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
    return total - wide[np.arange(len(wide)), ids]


def reader(vlm: VLM, cached: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Perplexity of SmolLM2-135M, and its scores of the first window (from token CONTEXT - 1 on where `cached`)."""
    ids = windows(vlm)
    found = one_by_one(vlm, ids) if cached else [at_once(vlm, window) for window in ids]
    first = found[0]
    scored = found if cached else [scores[CONTEXT - 1 : -1] for scores in found]
    lost = np.concatenate(
        [losses(scores, window[CONTEXT:]) for scores, window in zip(scored, ids, strict=True)]
    )
    return {"perplexity": float(np.exp(lost.mean())), "words": len(lost)}, first


def compared(text: dict[str, Any], scores: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
    """`text` with how far the scores are off those of float32."""
    return text | {
        "largest_error": float(np.abs(scores - plain).max()),
        "same_word": float((scores.argmax(-1) == plain.argmax(-1)).mean()),
    }


def weight_rows(pictures: int) -> list[dict[str, Any]]:
    """What each kind of weights gives."""
    rows, plain = [], None
    for kind in WEIGHTS:
        vlm = load("smollm2-135m", dtype="float32", weights=kind)  # type: ignore[arg-type]
        text, scores = reader(vlm, cached=False)
        plain = scores if plain is None else plain
        text = compared(text | {"mb": weight_bytes(vlm.packed) / 1e6}, scores, plain)
        vlm = load("smolvlm-nano", dtype="float32", weights=kind)  # type: ignore[arg-type]
        eyes = {"mb": weight_bytes(vlm.packed) / 1e6, **bundled(vlm, pictures)}
        rows.append({"weights": kind, "smollm2-135m": text, "smolvlm-nano": eyes})
    return rows


def cache_rows(pictures: int) -> list[dict[str, Any]]:
    """What each kind of cache gives, of float32 weights."""
    text_model, picture_model = (load(name, dtype="float32") for name in ("smollm2-135m", "smolvlm-nano"))
    rows, plain = [], None
    for kind in CACHES:
        vlm = dataclasses.replace(text_model, config=text_model.config.with_compute(cache=kind))
        text, scores = reader(vlm, cached=True)
        plain = scores if plain is None else plain
        text["token_bytes"] = token_bytes(vlm.config.text, vlm.config.compute)
        vlm = dataclasses.replace(picture_model, config=picture_model.config.with_compute(cache=kind))
        eyes = bundled(vlm, pictures)
        rows.append({"cache": kind, "smollm2-135m": compared(text, scores, plain), "smolvlm-nano": eyes})
    return rows


def markdown(result: Mapping[str, Any], of: str) -> str:
    """The table of a result "of" the weights or the cache."""
    measured = "perplexity | largest error of a score | same word"
    if of == "weights":
        head = f"| weights | SmolLM2-135M | {measured} | smolvlm-nano | exact answers | CIDEr-D |"
    else:
        head = f"| cache | SmolLM2-135M, a token | {measured} | exact answers of smolvlm-nano | CIDEr-D |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in result[of]:
        text, eyes = row["smollm2-135m"], row["smolvlm-nano"]
        measured = f"{text['perplexity']:.3f} | {text['largest_error']:.3g} | {text['same_word']:.1%}"
        answers = f"{eyes['exact']['value']:.3f} | {eyes['cider_d']['value']:.3f}"
        if of == "weights":
            lines.append(
                f"| {row['weights']} | {text['mb']:.0f} MB | {measured} | {eyes['mb']:.1f} MB | {answers} |"
            )
        else:
            lines.append(f"| {row['cache']} | {text['token_bytes'] / 1e3:.1f} KB | {measured} | {answers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints two Markdown tables, writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    enable_compilation_cache()
    result = {
        "pictures": args.pictures,
        "weights": weight_rows(args.pictures),
        "cache": cache_rows(args.pictures),
    }
    if args.out:
        write_json(args.out, result)
    for of in ("weights", "cache"):
        print(markdown(result, of))


if __name__ == "__main__":
    main()
