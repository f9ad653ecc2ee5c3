"""`smoljax ground`: where in a picture an answer comes from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError

PictureOption = Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="The picture.")]
AskOption = Annotated[
    str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask; - reads standard input.")
]
DrawingOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="F.png", help="Draw heat and boxes over the picture.", show_default="none"
    ),
]
HeatmapOption = Annotated[
    Path | None, typer.Option("--heatmap", metavar="F.npz", help="Write the numbers.", show_default="none")
]
AnswerOption = Annotated[
    str | None,
    typer.Option(
        "--answer", metavar="TEXT", help="Explain these words instead.", show_default="what the model says"
    ),
]


def ground(
    model: common.ModelOption,
    image: PictureOption,
    prompt: AskOption,
    out: DrawingOption = None,
    heatmap: HeatmapOption = None,
    answer: AnswerOption = None,
    fine: Annotated[
        bool, typer.Option("--fine", help="Follow the patch encoder too: a map of single patches.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    dtype: common.DtypeOption = None,
    json: common.JsonOption = False,
) -> None:
    """Answer a prompt about a picture, and show where in the picture the answer comes from.

    Boxes are read from location tokens, where the model has them; the heat map works for any model. F.npz holds
    `heatmap` [rows, cols] float32 over the whole picture, `tokens` [T] float32 (relevance of every prompt token),
    `input_ids` [T] int32 and `boxes` [n, 4] float32 (x0, y0, x1, y1 in pixels).

    Example: `smoljax ground -m smolvlm-nano -i scene.png -p 'Locate the red circle.' -o found.png`
    """
    if heatmap is not None:
        common.check_npz(heatmap)
    if out is not None:
        _check_picture(out)
    sample = common.prompt_options(prompt=prompt, image=[image])
    from smoljax.models import enable_compilation_cache, load

    enable_compilation_cache()
    vlm = load(model, dtype=dtype, background=True)
    if vlm.config.vision is None:
        raise UsageError(f"{model} is a text-only model: it has no picture to point into")
    from smoljax.grounding import ground as find

    found = find(
        vlm,
        image,
        sample["prompt"],
        answer=answer,
        max_new_tokens=max_new_tokens,
        patches=fine,
        longest_edge=longest_edge,
        split=False if no_split else None,
    )
    cells, size = found.relevance.maps[0], found.picture.size
    if out is not None:
        from smoljax.grounding.drawing import draw

        draw(found).save(out)
    if heatmap is not None:
        import numpy as np

        boxes = np.array([box.box for box in found.boxes], np.float32).reshape(-1, 4)
        tokens, ids = found.relevance.tokens, found.batch.input_ids[0]
        np.savez(heatmap, heatmap=cells, tokens=tokens, input_ids=ids, boxes=boxes)
    for line in vlm.notes:
        common.note(f"note: {line}")
    if vlm.untrained:
        common.note(f"note: {model} is untrained (random weights): words and map mean nothing")
    peak = [round(value, 1) for value in found.relevance.peak(*size)]
    result: dict[str, Any] = {
        "answer": found.answer,
        "boxes": [{"label": box.label, "box": [round(value, 2) for value in box.box]} for box in found.boxes],
        "heatmap": {
            "size": list(cells.shape),
            "peak": peak,
            "picture_share": round(found.relevance.picture_share, 4),
        },
        "picture_size": list(size),
        "log_odds": round(found.relevance.log_odds, 4),
        "out": None if out is None else str(out),
    }
    if json:
        common.print_json(result)
        return
    print(found.answer)
    for box in result["boxes"]:
        print(f"box of {box['label']}: {', '.join(f'{value:g}' for value in box['box'])}")
    rows, cols = cells.shape
    print(
        f"heat map {rows} × {cols}, greatest at x {peak[0]:g}, y {peak[1]:g} of {size[0]} × {size[1]} pixels"
    )
    if out is not None:
        print(f"drawn to {out}")


def _check_picture(path: Path) -> None:
    """Refuses a drawing that cannot be written, before any work is done."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"{path}: the drawing must end in .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
