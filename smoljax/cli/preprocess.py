"""`smoljax preprocess` and `smoljax logits`: what the model is fed, and what it thinks of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.cli import common

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="F.npz", help="The file to write.")]
OptionalOutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="F.npz", help="The file to write.", show_default="none")
]


@common.takes_prompt
def preprocess(
    model: common.ModelOption,
    sample: dict[str, Any],
    out: OptionalOutOption = None,
    json: common.JsonOption = False,
) -> None:
    """Say what a prompt costs, and write what the model is fed; no weights are read.

    F.npz holds `input_ids` [T] int32 and, with pictures, `pixel_values` [I, 3, H, W] float32 (tiles in prompt
    order, the whole picture last) and `tile_mask` [I] bool. `grid` counts rows and columns of each picture's
    tiles; [0, 0] is a picture that is one tile.

    Example: `smoljax preprocess -m SmolVLM-256M-Instruct -i photo.jpg -p 'What is this?' -o fed.npz`
    """
    if out is not None:
        common.check_npz(out)
    import numpy as np

    from smoljax.models import load_processor

    batch = load_processor(model)(**sample)
    if out is not None:
        np.savez(out, **_first_row(batch.arrays()))
    result = {
        "prompt_tokens": batch.prompt_tokens[0],
        "image_tokens": batch.image_tokens[0],
        "tiles": batch.tiles[0],
        "grid": [list(grid) for grid in batch.grids[0]],
        "out": None if out is None else str(out),
    }
    if json:
        common.print_json(result)
        return
    line = f"{result['prompt_tokens']} prompt tokens"
    if result["tiles"]:
        grids = ", ".join(f"{rows}×{cols} + 1" if rows else "1" for rows, cols in batch.grids[0])
        line += f", {result['image_tokens']} of them image tokens; tiles (rows × columns + whole picture): {grids}"
    print(line if out is None else f"{line}; written to {out}")


@common.takes_prompt
def logits(
    model: common.ModelOption,
    sample: dict[str, Any],
    out: OutOption,
    dtype: common.DtypeOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write the model's score of every word at every position of a prompt.

    F.npz holds `logits` [T, V] float32 and `input_ids` [T] int32; row t scores the token after position t.
    Matrix products run at the highest precision of the machine.

    Example: `smoljax logits -m smollm2-135m -p 'Hello' -o scores.npz`
    """
    common.check_npz(out)
    import jax
    import numpy as np

    from smoljax.models import enable_compilation_cache, load

    enable_compilation_cache()
    vlm = load(model, dtype=dtype)
    batch = vlm.prepare(**sample)
    with jax.default_matmul_precision("highest"):
        scores = vlm.logits(batch.arrays())[0]
    np.savez(out, logits=scores, input_ids=batch.input_ids[0])
    if json:
        common.print_json(
            {"prompt_tokens": batch.prompt_tokens[0], "shape": list(scores.shape), "out": str(out)}
        )
    else:
        print(f"logits {scores.shape[0]} × {scores.shape[1]} written to {out}")


def _first_row(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in arrays.items() if name != "attention_mask"}
