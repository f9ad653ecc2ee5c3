"""`smoljax export`: the compiled programs of answering beside the weights, for jax alone and for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any MODEL.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    prompt_tokens: Annotated[
        str,
        typer.Option(metavar="N,N", help="Buckets that prompts are padded to; each has programs of its own."),
    ] = "128,384",
    new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    platforms: Annotated[
        str, typer.Option(metavar="cpu,cuda,tpu", help="What the programs will run on; none need be here.")
    ] = "cpu",
    dtype: common.DtypeOption = None,
    weights: common.WeightsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Export the programs of greedy answers beside the weights: they run without smoljax (docs/export.md).

    Writes `jax.export` files and StableHLO of the patch encoder, prefill and decoding, weights.safetensors,
    manifest.json, the processor's files, and run.py, which needs neither smoljax nor flax. Needs the extra `export`.

    Example: `smoljax export smolvlm-nano nano-programs --platforms cpu,tpu --weights int8`
    """
    from smoljax.export import export as run
    from smoljax.models import load

    try:
        buckets = [int(word) for word in prompt_tokens.split(",")]
    except ValueError as error:
        raise UsageError(f"--prompt-tokens is {prompt_tokens!r}; it must be numbers: 128,384") from error
    names = [word.strip() for word in platforms.split(",")]
    vlm = load(model, dtype=dtype, weights=weights)  # type: ignore[arg-type]
    manifest = run(vlm, out, buckets, new_tokens, names)
    if json:
        common.print_json(
            {"path": str(out), **{key: manifest[key] for key in ("platforms", "prompt_tokens")}}
        )
        return
    programs = len(manifest["programs"]) * len(names)
    print(f"{out}: {programs} programs for {', '.join(names)}; python {out / 'run.py'} answers")
