"""The main job of `make run`: the bundled model looks at a picture, offline.

    python -m experiments.first_run [--seed N] [--model MODEL]

Draws a picture the model has never seen, then: describes it, answers questions, reads, points, and finds the picture
that fits a sentence. What is true of the picture is known, so every answer stands beside it.
"""

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from smoljax.data.scenes import Scene, scene
from smoljax.embedding import embed_images, embed_texts
from smoljax.errors import SmoljaxError
from smoljax.grounding import ground
from smoljax.grounding.drawing import draw
from smoljax.models import enable_compilation_cache, load
from smoljax.vlm import VLM

MODEL = "smolvlm-nano"
FOLDER = Path("runs/first_run")
GALLERY = 24
# Numbers behind the splits' own 2,000: nobody has seen these pictures. The gallery's lie before the chosen one's.
OTHERS, CHOSEN = 3000, 4000
KINDS = ("existence", "count", "colour", "shape", "texture", "relation", "relation", "reading")

console = Console(highlight=False)


def choose(start: int) -> Scene:
    """The first test scene from `start` on with four objects or more and a printed word."""
    index = start
    while True:
        found = scene("test", index)
        if len(found.layout.things) >= 4 and found.layout.print.text.isalpha():
            return found
        index += 1


def picture_of(found: Scene) -> Image.Image:
    """Its picture."""
    return Image.open(io.BytesIO(found.example()["image"])).convert("RGB")


def questions_of(found: Scene) -> list[tuple[str, str]]:
    """One question of each kind in KINDS, with its answer."""
    left = list(found.questions)
    chosen = []
    for kind in KINDS:
        item = next((question for question in left if question.kind == kind), None)
        if item is not None:
            left.remove(item)
            chosen.append((item.question, item.answer))
    return chosen


def describe_and_answer(vlm: VLM, found: Scene, picture: Image.Image) -> None:
    """The description and the answers, each beside the truth."""
    console.print("  [bold]Describe the picture.[/bold]")
    console.print("  ", end="")
    for piece in vlm.generate("Describe the picture.", images=[picture], stream=True, max_new_tokens=96):
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print(f"\n  [dim]drawn as: {found.captions[0]}[/dim]\n")
    asked = questions_of(found)
    answers = vlm.generate_batch(
        [{"prompt": question, "images": [picture]} for question, _ in asked], max_new_tokens=16
    )
    table = Table(
        "question", "answer", "truth", box=None, header_style="bold", pad_edge=False, padding=(0, 2)
    )
    for (question, truth), answer in zip(asked, answers, strict=True):
        right = answer.strip().lower() == truth.lower()
        table.add_row(question, answer.strip(), f"[green]{truth}[/green]" if right else f"[red]{truth}[/red]")
    console.print(table)


def point(vlm: VLM, found: Scene, picture: Image.Image) -> Path:
    """A box and a heat map for one object, drawn over the picture."""
    thing = next(item for item in found.example()["objects"] if item["reference"])
    result = ground(vlm, picture, f"Locate {thing['reference']}.", patches=True)
    target = FOLDER / "ground.png"
    draw(result).save(target)
    console.print(f"  [bold]{result.prompt}[/bold]  {result.answer}")
    for box in result.boxes:
        console.print(
            f"  box {[round(value) for value in box.box]}, drawn at {thing['box'].tolist()}: "
            f"overlap {overlap(box.box, thing['box']):.2f}"
        )
    return target


def overlap(one: tuple[float, ...], other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    a, b = np.asarray(one, float), np.asarray(other, float)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = sides.prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


def find(vlm: VLM, found: Scene, picture: Image.Image) -> Path:
    """Which of some pictures fits the sentence that was written for this one?"""
    others = [scene("test", OTHERS + index) for index in range(GALLERY - 1)]
    pictures = [picture, *(picture_of(other) for other in others)]
    order = np.random.default_rng(0).permutation(GALLERY)
    images = embed_images(vlm, [pictures[index] for index in order])
    text = embed_texts(vlm, [found.captions[1]])
    scores = images @ text[0]
    best = np.argsort(-scores)[:3]
    place = int(np.flatnonzero(order == 0)[0])
    rank = int((scores > scores[place]).sum()) + 1
    console.print(f'  [bold]"{found.captions[1]}"[/bold]')
    listed = ", ".join(f"number {index + 1} ({scores[index]:.2f})" for index in best)
    console.print(
        f"  best of {GALLERY} pictures: {listed}; it was written for number {place + 1}: rank {rank}"
    )
    sheet = Image.new("RGB", (8 * 100, -(-GALLERY // 8) * 100), "white")
    for slot, index in enumerate(order):
        tile = pictures[index].resize((96, 96))
        if slot == best[0]:
            framed = Image.new("RGB", (100, 100), (20, 160, 60))
            sheet.paste(framed, (slot % 8 * 100, slot // 8 * 100))
        sheet.paste(tile, (slot % 8 * 100 + 2, slot // 8 * 100 + 2))
    target = FOLDER / "gallery.png"
    sheet.save(target)
    return target


def main() -> None:
    """Runs the four parts and says where the pictures lie."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="another number, another picture")
    parser.add_argument("--model", default=MODEL, help="a model trained on scenes")
    options = parser.parse_args()
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    started = time.perf_counter()
    enable_compilation_cache()
    vlm = load(options.model)
    found = choose(CHOSEN + 100 * options.seed)
    picture = picture_of(found)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture.resize((384, 384), Image.Resampling.LANCZOS).save(FOLDER / "picture.png")
    console.print(
        Panel(
            f"[bold]{options.model}[/bold] looks at {FOLDER / 'picture.png'}, which it has never seen",
            expand=False,
        )
    )
    describe_and_answer(vlm, found, picture)
    console.print(Panel("It points", expand=False))
    grounded = point(vlm, found, picture)
    console.print(Panel("It finds the picture that fits a sentence", expand=False))
    gallery = find(vlm, found, picture)
    console.print(f"\n  pictures: {FOLDER / 'picture.png'}, {grounded}, {gallery}")
    console.print(
        f"  {time.perf_counter() - started:.1f} s in all, on this machine alone: no network, no accelerator"
    )
    console.print(
        "  It knows scenes, not photographs (checkpoints/smolvlm-nano/README.md).\n"
        f"  [dim]smoljax generate -m {options.model} -i {FOLDER / 'picture.png'} -p 'What word is printed?'[/dim]"
    )


if __name__ == "__main__":
    try:
        main()
    except SmoljaxError as error:
        print(f"smoljax: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
