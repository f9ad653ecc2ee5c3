"""`smoljax preprocess` and `smoljax logits`: what the model is fed, and what it thinks of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.cli import common

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="F.npz", help="The file to write.")]


def preprocess(
    model: common.ModelOption,
    out: OutOption,
    prompt: common.PromptOption = None,
    image: common.ImageOption = None,
    video: common.VideoOption = None,
    messages: common.MessagesOption = None,
    text: common.TextOption = None,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    video_style: common.VideoStyleOption = "hf",
    json: common.JsonOption = False,
) -> None:
    """Write what the model is fed, and say what it costs; no weights are read.

    F.npz holds `input_ids` [T] int32 and, with pictures, `pixel_values` [I, 3, H, W] float32 (tiles in prompt
    order, the whole picture last) and `tile_mask` [I] bool.

    Example: `smoljax preprocess -m SmolVLM-256M-Instruct -i photo.jpg -p 'What is this?' -o fed.npz`
    """
    common.check_npz(out)
    import numpy as np

    from smoljax.models import load_processor

    sample = common.sample_from(
        prompt=prompt,
        messages=messages,
        text=text,
        images=image,
        video=video,
        longest_edge=longest_edge,
        no_split=no_split,
        video_style=video_style,
    )
    batch = load_processor(model)(**sample)
    np.savez(out, **_first_row(batch.arrays()))
    result = {
        "prompt_tokens": batch.prompt_tokens[0],
        "image_tokens": batch.image_tokens[0],
        "tiles": batch.tiles[0],
        "grid": [list(grid) for grid in batch.grids[0]],
        "out": str(out),
    }
    if json:
        common.print_json(result)
        return
    grids = ", ".join(f"{rows}×{cols}" if rows else "one tile" for rows, cols in batch.grids[0]) or "none"
    print(
        f"{result['prompt_tokens']} prompt tokens, {result['image_tokens']} of them image tokens of "
        f"{result['tiles']} tiles (grids, rows × columns: {grids}); written to {out}"
    )


def logits(
    model: common.ModelOption,
    out: OutOption,
    prompt: common.PromptOption = None,
    image: common.ImageOption = None,
    video: common.VideoOption = None,
    messages: common.MessagesOption = None,
    text: common.TextOption = None,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    video_style: common.VideoStyleOption = "hf",
    dtype: common.DtypeOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write the model's score of every word at every position of a prompt.

    F.npz holds `logits` [T, V] float32 and `input_ids` [T] int32; row t scores the token after position t.
    Matrix products run at the highest precision of the machine.

    Example: `smoljax logits -m smollm2-135m -p 'Hello' -o scores.npz`
    """
    common.check_npz(out)
    sample = common.sample_from(
        prompt=prompt,
        messages=messages,
        text=text,
        images=image,
        video=video,
        longest_edge=longest_edge,
        no_split=no_split,
        video_style=video_style,
    )
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
