"""One training step, smoljax against transformers + torch: same weights, same batch, same AdamW, float32.

    python -m experiments.benchmarks.train_step [--runs 3] [--json]
    python -m experiments.benchmarks.train_step --geometry tiny        # a check of the program, in a minute

Random weights of a released geometry are written once, for both. Then processes of the two take turns; each trains
`--steps` steps on the same batch (rows of one tile and `--tokens` words, every word learned): forward, backward,
gradients clipped to norm 1, AdamW. The first step of a process warms up and is not timed, but its loss counts: all
losses of the two must agree. The peak is the most resident memory a process ever had, loading included.
smoljax takes one process more, first, that fills the compilation cache. Needs `make reference`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoljax import presets
from smoljax.config import SmolVLMConfig
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.hf import json_bytes, save_hf
from smoljax.convert.hf_config import to_hf_config
from smoljax.convert.native import save_native
from smoljax.nn.smolvlm import init_params
from smoljax.nn.stacking import unstack_layers

GEOMETRIES = {"256m": presets.smolvlm_256m, "tiny": presets.tiny}
# Keeps memory in the process between steps instead of giving it back and clearing it again; glibc only.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
TOLERANCE = 1e-3  # of a loss of about 11; later steps stand on updates that round otherwise


def write_weights(config: SmolVLMConfig, native: Path, hf: Path) -> None:
    """The same random weights in both layouts."""
    stacked = config.with_compute(scan_layers=True)  # compiles in a fraction of the time
    params = unstack_layers(jax.jit(lambda key: init_params(stacked, key))(jax.random.key(0)))
    params = jax.tree.map(np.asarray, params)
    files = {"config.json": json_bytes(to_hf_config(config, dtype="float32"))}
    checkpoint = Checkpoint(config, params, files, untrained=True)
    save_native(checkpoint, native)
    save_hf(checkpoint, hf)


def make_batch(config: SmolVLMConfig, rows: int, words: int) -> dict[str, np.ndarray]:
    """Rows of one tile and `words` words; everything but the picture's tokens is learned."""
    assert config.vision is not None
    assert config.image_token_id is not None
    draw = np.random.default_rng(0)
    seats, side = config.image_seq_len, config.vision.image_size
    # Below every special token, so that no word is taken for a picture.
    ids = draw.integers(10, config.image_token_id - 100, (rows, seats + words), dtype=np.int32)
    ids[:, 1 : 1 + seats] = config.image_token_id
    tokens = ids.shape[1]
    return {
        "input_ids": ids,
        "loss_mask": ids != config.image_token_id,
        "segment_ids": np.ones_like(ids),
        "branch_ids": np.zeros_like(ids),
        "positions": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1)),
        "pixel_values": draw.standard_normal((rows, 1, 3, side, side)).astype(np.float32),
        "tile_mask": np.ones((rows, 1), bool),
    }


def call(
    module: str, folder: Path, batch: Path, settings: dict[str, Any], env: dict[str, str]
) -> dict[str, Any]:
    """What one process of a side printed."""
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", str(folder), str(batch)]
    run = subprocess.run(
        [*command, json.dumps(settings)], stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    if run.returncode:
        raise SystemExit(f"{module} ended with status {run.returncode}")
    return json.loads(run.stdout.splitlines()[-1])


def summary(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Median step and highest peak of a side's processes."""
    timed = [run["seconds"][1:] for run in processes]
    return {
        "median_s": round(statistics.median([second for run in timed for second in run]), 3),
        "all_s": [[round(second, 3) for second in run] for run in timed],
        "peak_gb": round(max(run["peak_bytes"] for run in processes) / 1e9, 3),
        "all_peaks_gb": [round(run["peak_bytes"] / 1e9, 3) for run in processes],
        "before_steps_gb": round(max(run["peak_before_steps_bytes"] for run in processes) / 1e9, 3),
        "losses": processes[-1]["losses"],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; the result as JSON."""
    config = GEOMETRIES[args.geometry]()
    adam = {"steps": args.steps, "lr": 1e-4, "weight_decay": 0.01}
    own = {
        "scan_layers": args.scan,
        "remat": args.remat,
        "chunk": args.chunk,
        "host_devices": args.host_devices,
        "fsdp": args.fsdp,
    }
    env = MALLOC if args.malloc else {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as place:
        native, hf, batch = Path(place) / "native", Path(place) / "hf", Path(place) / "batch.npz"
        write_weights(config, native, hf)
        rows = make_batch(config, args.rows, args.words)
        np.savez(batch, **rows)  # pyright: ignore[reportArgumentType]
        cache = {**env, "SMOLJAX_CACHE": str(Path(place) / "cache")}

        def smoljax_process(steps: int) -> dict[str, Any]:
            return call("train_step_smoljax", native, batch, {**adam, **own, "steps": steps}, cache)

        cold = smoljax_process(1)
        ours, theirs = [], []
        for _ in range(args.runs):
            ours.append(smoljax_process(args.steps))
            if not args.ours_only:
                theirs.append(call("train_step_torch", hf, batch, {**adam, "fused": args.fused}, env))
    result: dict[str, Any] = {
        "what": f"training step, {args.geometry} geometry, float32, AdamW, batch {args.rows}, one tile "
        f"+ {args.words} words a row",
        "tokens_a_row": rows["input_ids"].shape[1],
        "machine": {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": {name: version(name) for name in ("jax", "optax", "torch", "transformers")},
        "malloc_settings": args.malloc,
        "smoljax": {
            **summary(ours),
            "settings": own,
            "compile_s": round(cold["compile_s"], 1),
            "cold_peak_gb": round(cold["peak_bytes"] / 1e9, 3),
            "temporary_gb": round((ours[0]["temporary_bytes"] or 0) / 1e9, 3),
        },
    }
    if theirs:
        pairs = zip(ours[-1]["losses"], theirs[-1]["losses"], strict=True)
        result["transformers"] = {**summary(theirs), "settings": {"fused": args.fused}}
        result["time_ratio"] = round(result["smoljax"]["median_s"] / result["transformers"]["median_s"], 3)
        result["peak_ratio"] = round(result["smoljax"]["peak_gb"] / result["transformers"]["peak_gb"], 3)
        result["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
        result["same_losses"] = result["largest_loss_difference"] <= TOLERANCE
    return result


def show(result: dict[str, Any]) -> None:
    """A table on standard output."""
    print(f"{result['what']}\n\n| | median step | steps | peak memory |\n|---|---|---|---|")
    for side in ("smoljax", "transformers"):
        if side in result:
            found = result[side]
            steps = ", ".join(str(second) for run in found["all_s"] for second in run)
            print(f"| {side} | {found['median_s']} s | {steps} | {found['peak_gb']} GB |")
    own = result["smoljax"]
    print(
        f"\nsmoljax compiles in {own['compile_s']} s the first time (peak of that process {own['cold_peak_gb']} GB)"
    )
    if "time_ratio" in result:
        print(
            f"time ratio {result['time_ratio']}, memory ratio {result['peak_ratio']}; largest difference of a loss "
            f"{result['largest_loss_difference']:.1e}"
        )


def main() -> None:
    """Measures, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, default="256m")
    add("--runs", type=int, default=3, help="processes of each side, in turn")
    add("--steps", type=int, default=4, help="steps of a process; the first is not timed")
    add("--rows", type=int, default=2, help="batch size")
    add("--words", type=int, default=128, help="text tokens of a row, besides its tile's")
    add("--scan", action="store_true", help="smoljax: scan over layers")
    add("--remat", choices=("none", "dots", "full"), default="none", help="smoljax: what is recomputed")
    add("--chunk", type=int, default=1024, help="smoljax: tokens whose scores exist at a time")
    add("--host-devices", type=int, default=1, help="smoljax: devices made of the CPU")
    add("--fsdp", type=int, default=1, help="smoljax: ways the state is split")
    add("--fused", action="store_true", help="torch: the fused AdamW in place of the default one")
    add("--malloc", action="store_true", help="both: glibc settings that keep memory (docs/training.md)")
    add("--ours-only", action="store_true", help="leave transformers out, to try settings")
    add("--scratch", help="folder for 2 GB of weights", default=None)
    add("--out", type=Path, help="write the result as JSON here too")
    add("--json", action="store_true")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps must be at least 2: the first is not timed")
    result = measure(args)
    if args.out:
        args.out.write_text(json.dumps(result) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
