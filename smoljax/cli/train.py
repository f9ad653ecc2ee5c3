"""`smoljax train`: a config file → a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.py", help="Python file that defines `config`.")],
    workdir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run's folder.", show_default="runs/NAME"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the config, dotted: optimizer.lr=3e-4. May be given several times.",
            show_default=False,
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(min=1, help="Save and stop after this many steps in all.", show_default="the config's"),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="Several hosts: where host 0 listens, the same for all; auto where the cluster says it.",
            rich_help_panel="Several hosts",
            show_default="one host",
        ),
    ] = None,
    hosts: Annotated[
        int | None,
        typer.Option(min=1, help="How many there are.", rich_help_panel="Several hosts", show_default=False),
    ] = None,
    host: Annotated[
        int | None,
        typer.Option(
            min=0, help="Which one this is, from 0.", rich_help_panel="Several hosts", show_default=False
        ),
    ] = None,
    start_timeout: Annotated[
        int, typer.Option(min=1, help="Seconds to wait for the others.", rich_help_panel="Several hosts")
    ] = 300,
    patience: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seconds without a sign of life after which a host is gone.",
            rich_help_panel="Several hosts",
        ),
    ] = 30,
    stall: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seconds without a step after which the run is hung.",
            rich_help_panel="Several hosts",
        ),
    ] = 600,
    json: common.JsonOption = False,
) -> None:
    """Train a model, or go on where the folder's run stopped.

    The folder gets `metrics.jsonl`, TensorBoard events, checkpoints, the resolved config, and at the end
    `model/`, which every command takes. SIGTERM and Ctrl-C save and stop; the same call goes on.

    Example: `smoljax train experiments/scenes/nano.py --workdir runs/nano --set steps=2000`
    """
    from smoljax.models import enable_compilation_cache
    from smoljax.training.config_file import read_config
    from smoljax.training.hosts import HostsConfig
    from smoljax.training.run import train as run

    if coordinator is None and (hosts is not None or host is not None):
        raise UsageError("--hosts and --host belong to --coordinator HOST:PORT")
    together = None
    if coordinator is not None:
        together = HostsConfig(
            coordinator, hosts, host, start_s=start_timeout, patience_s=patience, stall_s=stall
        )
    resolved = read_config(config, overrides or ())
    enable_compilation_cache()
    result = run(resolved, workdir or Path("runs") / resolved.name, stop_after=stop_after, hosts=together)
    if json:
        common.print_json(
            {
                "step": result.step,
                "loss": result.loss,
                "workdir": str(result.workdir),
                "finished": result.finished,
                "model": None if result.model is None else str(result.model),
            }
        )
        return
    state = "finished" if result.finished else "stopped; the same call goes on"
    print(f"{result.workdir}: step {result.step}, loss {result.loss:.4g}, {state}")
    if result.model is not None:
        print(f"model: {result.model}")
