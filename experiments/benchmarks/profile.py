"""Where the time of a tile, a prompt or a training step goes on this machine, by XLA's own trace.

    python -m experiments.benchmarks.profile tile|prefill|train [--scan] [--remat dots] [--workdir FOLDER]

Operations are put together by what they are (a product is a `ynn_fusion` or a `dot`) and by how often they run: what
runs once a layer are the large products, what runs once a head is attention's. Random weights of SmolVLM-256M's
geometry, the prompt has 512 tokens, the step two rows of one tile and 128 words. XLA's trace shows what runs inside the
loops of a training step and of attention; a loop's own line counts what its body does not show.
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import smoljax
from smoljax.bench.prompts import picture_prompt, text_prompt
from smoljax.bench.train_ours import TrainOurs
from smoljax.generation.generator import Generator
from smoljax.untrained import make_untrained


def answering(folder: Path, what: str, scan: bool) -> Callable[[], Any]:
    """Encodes a tile, or reads 512 tokens."""
    vlm = smoljax.load(folder, scan_layers=scan)
    generator = Generator(vlm.config, vlm.weights, (), 0, kept=vlm.kept, shapes=vlm.shapes)
    config = vlm.config
    assert config.vision is not None
    tile = picture_prompt(8, config.image_seq_len, config.image_token_id, config.vision.image_size)
    prompt = text_prompt(512, 1)
    return lambda: generator.encode_images(tile) if what == "tile" else generator.generate(prompt, 1)


def operations(run: Callable[[], Any], repeats: int) -> list[tuple[str, int, float]]:
    """(kind, calls, milliseconds) of one run, the longest first."""
    for _ in range(2):
        jax.block_until_ready(run())
    spent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (trace,) = Path(place).glob("**/*.trace.json.gz")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
            if operation := event.get("args", {}).get("hlo_op"):
                spent[operation] += event["dur"]
                calls[operation] += 1
    kinds: collections.Counter[tuple[str, int]] = collections.Counter()
    for operation, microseconds in spent.items():
        kind = re.sub(r"[.\d]+$", "", operation)
        kind = "product" if kind in ("ynn_fusion", "dot", "dot_general") else kind
        kinds[kind, calls[operation] // repeats] += microseconds
    return [(kind, count, total / 1e3 / repeats) for (kind, count), total in kinds.most_common()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tile", "prefill", "train"))
    parser.add_argument("--remat", default="dots", help="of the training step")
    parser.add_argument(
        "--scan", action="store_true", help="tile, prefill: layers by lax.scan, in one program"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--workdir", type=Path, help="where `smoljax bench --workdir` keeps the weights")
    parser.add_argument("--least", type=float, default=0.01, help="share below which a line is left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = (args.workdir or Path(place)) / "native"
        if not folder.exists():
            make_untrained("smolvlm-256m", folder, seed=0, tokenizer="smollm2-135m", dtype="float32")
        if args.what == "train":
            run = TrainOurs({"model": str(folder), "remat": args.remat}).prepare(rows=2, words=128).one
        else:
            run = answering(folder, args.what, args.scan)
        rows = operations(run, args.repeats)
    total = sum(milliseconds for _, _, milliseconds in rows)
    print(f"{total:.0f} ms\n\n| operation | calls of each | ms | share |\n|---|---|---|---|")
    for kind, count, milliseconds in rows:
        if milliseconds >= args.least * total:
            print(f"| {kind} | {count} | {milliseconds:.0f} | {milliseconds / total:.0%} |")


if __name__ == "__main__":
    main()
