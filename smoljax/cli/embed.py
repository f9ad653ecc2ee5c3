"""`smoljax embed`: pictures and texts → vectors of one space."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError

TextsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "-t",
        metavar="TEXT",
        help="A text; may be given several times. - reads standard input, one text a line.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="F.npz", help="The file to write.", show_default="none")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Inputs that are read together.")]


def embed(
    model: common.ModelOption,
    image: common.ImageOption = None,
    text: TextsOption = None,
    out: OutOption = None,
    batch_size: BatchOption = 32,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    dtype: common.DtypeOption = None,
    json: common.JsonOption = False,
) -> None:
    """Turn pictures and texts into vectors of one space, and say which go together.

    F.npz holds `image` [n, D] and `text` [m, D], float32, unit length: `image @ text.T` are the cosines, which are
    printed too. They mean something for a checkpoint trained with the contrastive loss.

    Example: `smoljax embed -m smolvlm-nano -i a.png -i b.png -t 'a red circle on sand' -o vectors.npz`
    """
    texts = _texts(text)
    if not image and not texts:
        raise UsageError("nothing to embed: give --image or --text")
    if out is not None:
        common.check_npz(out)
    import numpy as np

    from smoljax.embedding import embed_images, embed_texts
    from smoljax.models import enable_compilation_cache, load

    enable_compilation_cache()
    vlm = load(model, dtype=dtype, background=True)
    empty = np.zeros((0, vlm.config.text.hidden_size), np.float32)
    split = False if no_split else None
    pictures = empty
    if image:
        pictures = embed_images(vlm, image, batch_size, longest_edge=longest_edge, split=split)
    sentences = embed_texts(vlm, texts, batch_size) if texts else empty
    if out is not None:
        np.savez(out, image=pictures, text=sentences)
    for line in vlm.notes:
        common.note(f"note: {line}")
    if vlm.untrained:
        common.note(f"note: {model} is untrained (random weights): these vectors mean nothing")
    cosines = pictures @ sentences.T
    if json:
        result: dict[str, Any] = {
            "shape": {"image": list(pictures.shape), "text": list(sentences.shape)},
            "cosine": [[round(float(value), 6) for value in row] for row in cosines],
            "out": None if out is None else str(out),
        }
        common.print_json(result)
        return
    counts = f"pictures: {len(pictures)}, texts: {len(sentences)}; vectors of {pictures.shape[1]} numbers"
    print(counts if out is None else f"{counts}, written to {out}")
    if cosines.size:
        _print_table([str(path) for path in image or []], texts, cosines)


def _texts(given: list[str] | None) -> list[str]:
    texts: list[str] = []
    for text in given or []:
        texts += [line.strip() for line in sys.stdin if line.strip()] if text == "-" else [text]
    return texts


def _print_table(pictures: list[str], texts: list[str], cosines: Any) -> None:
    """For every picture the texts that fit it best, with their cosines."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("picture", "cosine", "text", box=box.SIMPLE)
    for name, row in zip(pictures, cosines, strict=True):
        best = sorted(range(len(texts)), key=lambda place: -row[place])[:5]
        for rank, place in enumerate(best):
            table.add_row(escape(name) if rank == 0 else "", f"{row[place]:.3f}", escape(texts[place]))
    common.console().print(table)
