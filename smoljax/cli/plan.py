"""`smoljax plan`: a config file and a TPU topology → does it fit, and how fast will it be."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.py", help="Python file that defines `config`.")],
    topology: Annotated[
        str,
        typer.Option(
            metavar="CHIP:AxB", help="The slice: v5e:4x4, v5e:16x16, v6e:16x16, v5p:4x4x4, v4:2x2x1."
        ),
    ],
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a batch, all chips together.", show_default="the config's"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the config: mesh.fsdp=16, model.remat=dots. May be given several times.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Compile a few other meshes, remat policies and batches too, and rank them."
        ),
    ] = False,
    answers: Annotated[
        bool,
        typer.Option("--answers", help="Plan answering with this model in place of training it."),
    ] = False,
    prompt: Annotated[int, typer.Option(min=1, help="With --answers: tokens of a prompt.")] = 1024,
    new: Annotated[int, typer.Option(min=1, help="With --answers: tokens of an answer.")] = 256,
    tiles: Annotated[
        int | None,
        typer.Option(
            min=0, help="With --answers: tiles of a question's picture.", show_default="as many as fit"
        ),
    ] = None,
    hlo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the compiled program here.", show_default=False)
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Compile the real training step for a TPU slice on this machine, and say what it will need and do there.

    No TPU is needed, but its compiler: `pip install 'smoljax[tpu]'`. Minutes of one core; nothing is allocated but the
    compiler's own gigabytes. docs/plan.md says how times are predicted, and how far off they are.

    Example: `smoljax plan experiments/plan/smolvlm.py --topology v5e:16x16 --set size=2.2b`
    """
    from smoljax.plan.chips import read_topology
    from smoljax.plan.plan import advise, plan_training, smaller
    from smoljax.training.config_file import read_config

    resolved = read_config(config, overrides or ())
    if batch is not None:
        resolved = smaller(resolved, batch)
    place = read_topology(topology)
    if hlo is not None and (search or answers):
        raise UsageError("--hlo is of one training step: leave --search and --answers out")
    if answers:
        _answers(resolved, place, prompt, new, tiles, json)
        return
    if search:
        console = common.console(stderr=True)

        def tell(number: int, count: int, found: dict[str, Any]) -> None:
            said = found.get("refused") or _line(found)
            console.print(f"[{number}/{count}] {found['setting']}: {said}", markup=False)

        plans = advise(resolved, place, tell)
        if json:
            common.print_json({"plans": plans})
            return
        _ranking(plans)
        return
    found = plan_training(resolved, place, keep_hlo=hlo)
    if json:
        common.print_json(found)
        return
    render(found)


def _answers(config: Any, topology: Any, prompt: int, new: int, tiles: int | None, json: bool) -> None:
    from smoljax.plan.answers import Load, plan_answers
    from smoljax.training.setup import plain_model

    model = plain_model(config.model).config
    fitting = 0 if model.vision is None else min(config.data.max_tiles, prompt // model.image_seq_len)
    load = Load(config.data.batch_size, prompt, new, fitting if tiles is None else tiles)
    found = plan_answers(model, config.mesh, topology, load)
    if json:
        common.print_json(found)
        return
    from rich.table import Table

    console = common.console()
    verdict = "[bold green]fits[/bold green]" if found["fits"] else "[bold red]does not fit[/bold red]"
    console.print(
        f"[bold]{found['topology']}[/bold], {found['chips']} chips: {verdict}; {load.rows} questions of {prompt} "
        f"tokens, {load.tiles} tiles each, up to {new} new tokens"
    )
    table = Table(
        "program", "GiB a chip", "ms", "memory ms", "links ms", "MFU", box=None, header_style="bold"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name in ("vision", "prefill", "decode"):
        if (part := found.get(name)) is None:
            continue
        size, times = f"{part['hbm_bytes_per_chip'] / 2**30:,.2f}", part.get("predicted_s")
        if times is None:
            table.add_row(name, size, "does not fit", "", "", "")
            continue
        cells = [f"{1e3 * times[key]:,.2f}" for key in ("scheduled", "memory", "links")]
        table.add_row(name, size, *cells, f"{100 * part['predicted_mfu']:.1f} %")
    console.print(table)
    if found["tokens_per_s"] is not None and found["first_token_s"] is not None:
        console.print(
            f"[bold]first token after {1e3 * found['first_token_s']:,.1f} ms, then {found['tokens_per_s']:,.0f} "
            f"tokens/s[/bold] of all questions together ({found['tokens_per_s'] / load.rows:,.0f} of each)"
        )


def render(found: dict[str, Any]) -> None:
    """Prints a plan as tables."""
    from rich.table import Table

    console = common.console()
    verdict = "[bold green]fits[/bold green]" if found["fits"] else "[bold red]does not fit[/bold red]"
    mesh = " × ".join(f"{name} {size}" for name, size in found["mesh"].items()) or "one chip"
    console.print(f"[bold]{found['topology']}[/bold], {found['chips']} chips, {mesh}: {verdict}")
    hbm = found["hbm"]
    spare = hbm["available"] - found["hbm_bytes_per_chip"]
    table = Table("memory of a chip", "GiB", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for name in ("parameters", "optimizer", "ema", "batch", "temporaries", "code"):
        if hbm.get(name):
            table.add_row(name, f"{hbm[name] / 2**30:,.2f}")
        if name == "temporaries" and hbm.get("activations"):
            table.add_row("  of these kept activations", f"{hbm['activations'] / 2**30:,.2f}")
    # Donated arguments make room for temporaries, so the peak is less than the sum.
    name = "at the peak" if "peak" in hbm else "together"
    table.add_row(f"[bold]{name}[/bold]", f"[bold]{found['hbm_bytes_per_chip'] / 2**30:,.2f}[/bold]")
    table.add_row("spare" if spare >= 0 else "[red]too much[/red]", f"{abs(spare) / 2**30:,.2f}")
    if hbm.get("host"):
        table.add_row("in the host's memory", f"{hbm['host'] / 2**30:,.2f}")
    console.print(table)
    if found["predicted_step_s"] is None:
        console.print("The compiler gave up for want of memory: a smaller batch, remat full, or more chips.")
        return
    times, flops = found["predicted_s"], found["flops"]
    table = Table("a step", "ms", "", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for name, about in (
        ("scheduled", "predicted, with the overlap that the compiled schedule has"),
        ("overlapped", "if all communication hid behind computation"),
        ("apart", "if none did"),
        ("products", "matrix products alone"),
        ("elements", "element operations alone"),
        ("memory", "main memory alone"),
        ("links", "links alone"),
        ("host", "transfers to and from the host alone"),
    ):
        if name == "host" and not times[name]:
            continue
        bold = name == "scheduled"
        text = f"{1e3 * times[name]:,.1f}"
        table.add_row(name, f"[bold]{text}[/bold]" if bold else text, about)
    console.print(table)
    console.print(
        f"[bold]MFU {100 * found['predicted_mfu']:.1f} %[/bold], {found['tokens_per_s']:,.0f} tokens/s, "
        f"{found['tiles_per_s']:,.0f} tiles/s; {flops['model'] / 1e12:,.1f} model TFLOP a step, "
        f"{flops['executed'] / 1e12:,.1f} executed"
    )
    if found["predictor_error"]:
        error = found["predictor_error"]
        console.print(
            f"The predictor on {error['runs']:g} published runs: mean error {100 * error['mean_abs']:.0f} %, "
            f"predicted over published time {error['low']:.2f} to {error['high']:.2f}"
            + (f"; {error['refused']:g} more were predicted not to fit" if error.get("refused") else "")
            + " (docs/plan.md)"
        )
    table = Table(
        "collective", "axes", "times", "MB", "ms on the links", box=None, header_style="bold", pad_edge=False
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in found["collectives"][:8]:
        size, seconds = row["bytes"] / 1e6, 1e3 * row["seconds"]
        table.add_row(row["kind"], row["axes"], f"{row['number']:,.0f}", f"{size:,.1f}", f"{seconds:,.2f}")
    if found["collectives"]:
        console.print(table)
    if found["loops_of_unknown_length"]:
        console.print(
            "Counted once, for want of a known length: " + ", ".join(found["loops_of_unknown_length"])
        )
    console.print(f"compiled in {found['compile_s']:g} s")


def _line(found: dict[str, Any]) -> str:
    size = f"{found['hbm_bytes_per_chip'] / 2**30:.1f} GiB a chip"
    if not found["fits"] or found["predicted_step_s"] is None:
        return f"does not fit ({size})"
    return f"{found['tokens_per_s']:,.0f} tokens/s, MFU {100 * found['predicted_mfu']:.1f} %, {size}"


def _ranking(plans: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("setting", "mesh", "batch", "remat", "", box=None, header_style="bold", pad_edge=False)
    for found in plans:
        mesh = " × ".join(f"{name} {size}" for name, size in found["mesh"].items())
        table.add_row(found["setting"], mesh, str(found["batch"]), found["remat"], _line(found))
    common.console().print(table)
