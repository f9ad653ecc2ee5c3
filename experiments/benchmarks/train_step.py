"""One training step, smoljax against transformers + torch: same weights, same batch, same AdamW, float32.

    python -m experiments.benchmarks.train_step [--runs 3] [--json]
    python -m experiments.benchmarks.train_step --geometry tiny        # a check of the program, in a minute

What `smoljax bench --what train` measures, with settings to try. Random weights of a released geometry are written
once, for both. Then processes of the two (`smoljax.bench.train_ours`, `train_theirs`) take turns; each trains
`--steps` steps on the same batch (rows of one tile and `--words` words, every word learned): forward, backward,
gradients clipped to norm 1, AdamW. The first step of a process warms up and is not timed, but its loss counts: all
losses of the two must agree. The peak is the most resident memory a process ever had, loading included. smoljax takes
one process more, first, that fills the compilation cache. Needs `make reference`, and for 256M the fetched
smollm2-135m (its tokenizer).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smoljax.bench.contender import start
from smoljax.bench.run import LOSSES_APART
from smoljax.convert.convert import convert
from smoljax.untrained import make_untrained

GEOMETRIES = {"256m": "smolvlm-256m", "tiny": "tiny"}
# Keeps memory in the process between steps instead of giving it back and clearing it again; glibc only.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def call(module: str, spec: dict[str, Any], what: dict[str, int], env: dict[str, str]) -> dict[str, Any]:
    """What one process of a side answers."""
    threads = os.cpu_count() or 1
    process = start(module, f"smoljax.bench.{module}", {**spec, "threads": threads}, threads, env)
    try:
        return process.ask("step", **what)
    finally:
        process.close()


def summary(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Median step and highest peak of a side's processes."""
    timed = [run["all_s"][1:] for run in processes]
    return {
        "median_s": round(statistics.median([second for run in timed for second in run]), 3),
        "all_s": [[round(second, 3) for second in run] for run in timed],
        "peak_gb": round(max(run["bytes"] for run in processes) / 1e9, 3),
        "all_peaks_gb": [round(run["bytes"] / 1e9, 3) for run in processes],
        "before_steps_gb": round(max(run["bytes_before"] for run in processes) / 1e9, 3),
        "losses": processes[-1]["losses"],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; the result as JSON."""
    own = {
        "scan_layers": args.scan,
        "remat": args.remat,
        "chunk": args.chunk,
        "host_devices": args.host_devices,
        "fsdp": args.fsdp,
    }
    env = MALLOC if args.malloc else {}
    what = {"rows": args.rows, "words": args.words, "steps": args.steps}
    with tempfile.TemporaryDirectory(dir=args.scratch) as place:
        native, hf = Path(place) / "native", Path(place) / "hf"
        preset = GEOMETRIES[args.geometry]
        make_untrained(preset, native, seed=0, tokenizer="smollm2-135m", dtype="float32")
        convert(native, hf, "hf")
        cache = {**env, "SMOLJAX_CACHE": str(Path(place) / "cache")}
        spec = {"model": str(native), **own}
        cold = call("train_ours", spec, {**what, "steps": 1}, cache)
        ours, theirs = [], []
        for _ in range(args.runs):
            ours.append(call("train_ours", spec, what, cache))
            if not args.ours_only:
                theirs.append(call("train_theirs", {"model": str(hf), "fused": args.fused}, what, env))
    result: dict[str, Any] = {
        "what": f"training step, {args.geometry} geometry, float32, AdamW, batch {args.rows}, one tile "
        f"+ {args.words} words a row",
        "tokens_a_row": ours[0]["tokens"],
        "machine": {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": {name: version(name) for name in ("jax", "optax", "torch", "transformers")},
        "malloc_settings": args.malloc,
        "smoljax": {
            **summary(ours),
            "settings": own,
            "compile_s": round(cold["compile_s"], 1),
            "cold_peak_gb": round(cold["bytes"] / 1e9, 3),
            "temporary_gb": round((ours[0]["temporary_bytes"] or 0) / 1e9, 3),
        },
    }
    if theirs:
        pairs = zip(ours[-1]["losses"], theirs[-1]["losses"], strict=True)
        result["transformers"] = {**summary(theirs), "settings": {"fused": args.fused}}
        result["time_ratio"] = round(result["smoljax"]["median_s"] / result["transformers"]["median_s"], 3)
        result["peak_ratio"] = round(result["smoljax"]["peak_gb"] / result["transformers"]["peak_gb"], 3)
        result["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
        result["same_losses"] = result["largest_loss_difference"] <= LOSSES_APART
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
    add(
        "--remat",
        choices=("none", "dots", "projections", "full"),
        default="none",
        help="smoljax: what is recomputed",
    )
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
