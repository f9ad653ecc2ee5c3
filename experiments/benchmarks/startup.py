"""Process start to first token, smoljax against transformers: same weights, same picture, one tile.

    python -m experiments.benchmarks.startup [--runs 3] [--json]

Makes a 256M-geometry model with random weights in a temporary folder (native and Hugging Face layout, float32), fills
smoljax's compilation cache with one run, then starts both programs in turn. Each run is a fresh process and counts
everything: interpreter, imports, weights, processor, picture, one generated token. Needs `make reference` and the
fetched smollm2-135m (for its tokenizer).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from smoljax.convert.convert import convert
from smoljax.untrained import make_untrained

PHOTO = str(files("smoljax") / "assets" / "coffee.jpg")
PROMPT = "What is on the table?"

THEIRS = """
import sys, torch
from PIL import Image
from transformers import AutoProcessor, AutoModelForImageTextToText
folder, photo, prompt = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
content = [{"type": "image"}, {"type": "text", "text": prompt}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=text, images=[Image.open(photo)], do_image_splitting=False, return_tensors="pt")
with torch.inference_mode():
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(out[0, -1].item())
"""


def ours(folder: Path, cache: Path) -> tuple[float, int]:
    """Wall seconds and the token of one smoljax process."""
    command = [sys.executable, "-m", "smoljax", "generate", "-m", str(folder), "-i", PHOTO, "-p", PROMPT]
    command += ["--no-split", "--max-new-tokens", "1", "--json"]
    started = time.perf_counter()
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "SMOLJAX_CACHE": str(cache)}
    )
    return time.perf_counter() - started, json.loads(run.stdout)["token_ids"][0]


def theirs(folder: Path) -> tuple[float, int]:
    """Wall seconds and the token of one transformers process."""
    command = [sys.executable, "-c", THEIRS, str(folder), PHOTO, PROMPT]
    started = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(run.stdout.split()[-1])


def main() -> None:
    """Prints medians and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="of each program, in turn")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        native, hf, cache = Path(place) / "native", Path(place) / "hf", Path(place) / "cache"
        make_untrained("smolvlm-256m", native, seed=0, tokenizer="smollm2-135m", dtype="float32")
        convert(native, hf, "hf")
        cold, token = ours(native, cache)
        rows = []
        for _ in range(args.runs):
            rows.append((ours(native, cache), theirs(hf)))
        equal = all(row[0][1] == row[1][1] == token for row in rows)
    our_times, their_times = [row[0][0] for row in rows], [row[1][0] for row in rows]
    result = {
        "what": "process start to first token, 256M geometry, one tile, float32",
        "smoljax_s": round(statistics.median(our_times), 2),
        "smoljax_all_s": [round(t, 2) for t in our_times],
        "smoljax_cold_s": round(cold, 2),
        "transformers_s": round(statistics.median(their_times), 2),
        "transformers_all_s": [round(t, 2) for t in their_times],
        "ratio": round(statistics.median(our_times) / statistics.median(their_times), 2),
        "same_token": equal,
    }
    if args.json:
        print(json.dumps(result))
        return
    print("| process start to first token | median | runs |\n|---|---|---|")
    print(f"| smoljax, warm compilation cache | {result['smoljax_s']} s | {result['smoljax_all_s']} |")
    print(f"| smoljax, first start ever (compiles) | {result['smoljax_cold_s']} s | |")
    print(f"| transformers | {result['transformers_s']} s | {result['transformers_all_s']} |")
    print(f"\nratio {result['ratio']}; same first token: {equal}")


if __name__ == "__main__":
    main()
