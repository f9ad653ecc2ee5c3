"""`smoljax models` and `smoljax inspect`: what there is, and what a model is made of."""

from typing import Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def models(json: common.JsonOption = False) -> None:
    """List models that have a name: bundled, fetched, ready to fetch; and the released sizes.

    Example: `smoljax models`
    """
    from smoljax.models import list_models
    from smoljax.presets import PRESETS

    entries = list_models()
    if json:
        rows = [
            {
                "name": e.name,
                "kind": e.kind,
                "path": None if e.path is None else str(e.path),
                "about": e.about,
            }
            for e in entries
        ]
        common.print_json({"models": rows, "sizes": list(PRESETS)})
        return
    from rich.table import Table

    table = Table("name", "kind", "where", "about", box=None, header_style="bold", pad_edge=False)
    for entry in entries:
        table.add_row(entry.name, entry.kind, str(entry.path or "–"), entry.about, style=None)
    console = common.console()
    console.print(table)
    console.print(f"\nsizes, for `inspect` and `init`: {', '.join(PRESETS)}")


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any MODEL, or a released size.")],
    full: Annotated[
        bool, typer.Option("--full", help="Every tensor, not one line a group of layers.")
    ] = False,
    sharding: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS=N,…",
            help="How a mesh splits every parameter, and what a device holds: fsdp=8,tensor=2, or rules=fsdp,fsdp=16.",
            show_default=False,
        ),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Show a model's config, parameter table, memory by dtype and what to know about its parity.

    Example: `smoljax inspect smolvlm-256m --sharding fsdp=8`
    """
    from smoljax.cli.describe import describe, render

    report: dict[str, Any] = describe(model, full=full, mesh=_mesh(sharding))
    if json:
        common.print_json(report)
    else:
        render(report)


def _mesh(text: str | None) -> Any:
    """A MeshConfig of "fsdp=8,tensor=2"."""
    if text is None:
        return None
    from smoljax.training.config import MeshConfig

    known = {"data": int, "fsdp": int, "sequence": int, "tensor": int, "rules": str}
    given: dict[str, Any] = {"data": 1}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in known or not value or (known[name] is int and not value.isdigit()):
            raise UsageError(
                f"--sharding {text!r}: write AXIS=N,…; axes: data, fsdp, sequence, tensor; rules=NAME"
            )
        given[name] = known[name](value)
    return MeshConfig(**given)
