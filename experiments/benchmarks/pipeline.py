"""How many pictures a core prepares for training, step by step: read and decode, cut into tiles, tokenise, pack.

    python -m experiments.benchmarks.pipeline [--pictures 24] [--seconds 5]
    python -m experiments.benchmarks.pipeline --table          # only the tables of docs/data.md, from what is stored

Pictures are synthetic photographs (smooth shapes and noise, so that JPEG has something to do) of three sizes, each with
a caption-like conversation, through the processors of SmolVLM2-256M (tiles of 512) and of 2.2B's kind (384). One
process on one core (it pins itself), each stage by itself on what the stage before has made, then the whole of
`smoljax.data`. The result goes to docs/benchmarks/pipeline.json; how many cores feed a chip is that against what the
plans of experiments.plan.table expect of a chip.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.commands import ROOT, fill, machine, write_json
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.data.encode import encode
from smoljax.data.packing import RowShape, batch_arrays
from smoljax.data.pipeline import make_iterator
from smoljax.data.records import Record
from smoljax.models import load_processor
from smoljax.processing.images import open_image
from smoljax.processing.processor import Processor
from smoljax.processing.released import processor_files
from smoljax.processing.tiling import apply_table, cut_tiles, normalize_table

OUT = ROOT / "docs" / "benchmarks" / "pipeline.json"
PAGE = ROOT / "docs" / "data.md"
PLANS = ROOT / "experiments" / "plan" / "results" / "plans"
SIZES = {"640 × 480": (640, 480), "1280 × 960": (1280, 960), "4000 × 3000": (4000, 3000)}
KINDS = {"256M (tiles of 512)": (512, 2048, 64), "2.2B (tiles of 384)": (384, 1536, 81)}
ANSWER = (
    "Two people walk along the shore under a grey sky. The taller one carries a red umbrella, and behind them a small "
    "dog runs after a ball that has rolled into the water. "
) * 3


def photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG that is as hard to decode as a photograph."""
    rng = np.random.default_rng(seed)
    small = rng.normal(128, 60, (12, 16, 3)).clip(0, 255).astype(np.uint8)
    wide = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    grain = rng.normal(0, 12, (size[1] // 2, size[0] // 2, 3)).repeat(2, 0).repeat(2, 1)
    wide[: grain.shape[0], : grain.shape[1]] += grain
    out = io.BytesIO()
    Image.fromarray(wide.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def make_processor(tile: int, longest: int, tokens: int) -> Processor:
    """Of a released size, with the tokenizer of SmolLM2 (`smoljax fetch smollm2-135m`)."""
    base = load_processor("smollm2-135m").files["tokenizer.json"]
    return Processor.from_files(
        processor_files(base, tile_size=tile, longest_edge=longest, image_seq_len=tokens, video=True)
    )


def rate(work: Callable[[Any], Any], items: list[Any], seconds: float) -> float:
    """Items a second."""
    work(items[0])
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        work(items[done % len(items)])
        done += 1
    return done / passed


def stages(processor: Processor, files: list[Path], seconds: float) -> dict[str, float]:
    """Pictures a second of each stage by itself, and of all of them by `encode`; tiles of a picture besides."""
    config = processor.config.image
    assert config is not None
    opened = [open_image(file) for file in files]
    plans = [processor.tile_plan(*image.size) for image in opened]
    cut = [cut_tiles(image, plan, config.resample) for image, plan in zip(opened, plans, strict=True)]
    table = normalize_table(config)
    records = [
        Record(
            id=str(number),
            images=(file,),
            conversations=(
                (
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}],
                    },
                    {"role": "assistant", "content": ANSWER},
                ),
            ),
        )
        for number, file in enumerate(files)
    ]
    examples = [encode(record, processor) for record in records]
    tokens = max(example.tokens for example in examples)
    tiles = max(example.tiles for example in examples)
    shape = RowShape(tokens, tiles, 1, config.tile_size, processor.pad_id, branches=False)
    pairs = list(zip(opened, plans, strict=True))
    return {
        "decode": rate(open_image, files, seconds),
        "resize and cut": rate(lambda pair: cut_tiles(pair[0], pair[1], config.resample), pairs, seconds),
        "normalise": rate(lambda some: apply_table(table, some), cut, seconds),
        "tokenise": rate(lambda example: processor.tokenizer.encode(ANSWER), examples, seconds),
        "pack": rate(lambda example: batch_arrays([[example]], shape), examples, seconds),
        "all": rate(lambda record: encode(record, processor), records, seconds),
        "tiles": float(np.mean([example.tiles for example in examples])),
        "tokens": float(np.mean([example.tokens for example in examples])),
    }


def whole(
    processor: Processor, folder: Path, files: list[Path], seconds: float, found: dict[str, float]
) -> float:
    """Pictures a second of batches as a run gets them."""
    lines = [
        {
            "id": str(number),
            "images": [file.name],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]},
                {"role": "assistant", "content": ANSWER},
            ],
        }
        for number, file in enumerate(files)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = 2
    config = DataConfig(
        (SourceConfig(str(folder / "data.jsonl")),),
        batch_size=rows,
        sequence_length=-(-int(found["tokens"] + 64) // 64) * 64,
        max_tiles=max(1, round(found["tiles"])),
        branches=False,
        prefetch=0,
    )
    batches = make_iterator(config, processor, 0)
    return rows * rate(lambda _: next(batches), [None], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--table", action="store_true", help="only the tables")
    args = parser.parse_args()
    if not args.table:
        write_json(OUT, measure(args.pictures, args.seconds))
    rows = json.loads(OUT.read_text())["rows"]
    for name, text in (("pipeline", table(rows)), ("cores", cores(rows))):
        fill(PAGE, name, text)
        print(text)


def measure(pictures: int, seconds: float) -> dict[str, Any]:
    """Every processor on every size of picture."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for kind, settings in KINDS.items():
        processor = make_processor(*settings)
        for name, size in SIZES.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                files = []
                for number in range(pictures):
                    files.append(folder / f"{number}.jpg")
                    files[-1].write_bytes(photograph(size, number))
                found = stages(processor, files, seconds)
                found["batches"] = whole(processor, folder, files, seconds, found)
            found["tiles a second"] = found["batches"] * found["tiles"]
            rows.append(
                {"processor": kind, "picture": name, **{key: round(value, 1) for key, value in found.items()}}
            )
            print(rows[-1], flush=True)
    return {"rows": rows, "seconds": seconds, "machine": machine()}


def table(rows: list[dict[str, Any]]) -> str:
    """Pictures a second of one core, by stage."""
    names = ("decode", "resize and cut", "normalise", "tokenise", "pack", "all", "batches")
    lines = [
        f"| processor | picture | tiles | {' | '.join(names)} | tiles a second |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.1f}" for name in names)
        lines.append(
            f"| {row['processor']} | {row['picture']} | {row['tiles']:.0f} | {cells} | {row['tiles a second']:.0f} |"
        )
    return "\n".join(lines)


def cores(rows: list[dict[str, Any]]) -> str:
    """Cores of a host for each chip, of the planned runs of 2048 tokens: one picture a row, at its slowest size."""
    slowest = {kind: min(row["tiles a second"] for row in rows if row["processor"] == kind) for kind in KINDS}
    fastest = {kind: max(row["tiles a second"] for row in rows if row["processor"] == kind) for kind in KINDS}
    lines = ["| run | tiles a second of a chip | cores a chip |", "|---|---|---|"]
    for path in sorted(PLANS.glob("*-2048.json")):
        told = json.loads(path.read_text())
        kind = next(kind for kind in KINDS if kind.startswith("2.2B") == (told["planned"]["size"] == "2.2b"))
        wanted = told["plan"]["tiles_per_s"] / told["plan"]["chips"]
        lines.append(
            f"| {told['planned']['size']} on {told['planned']['topology']} | {wanted:.0f} "
            f"| {wanted / fastest[kind]:.1f}–{wanted / slowest[kind]:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
