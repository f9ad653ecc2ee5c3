"""The console script: sub-commands, and one line on standard error where something fails."""

import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from smoljax.cli import (
    batch,
    bench,
    convert,
    embed,
    eval,
    export,
    generate,
    ground,
    inspect,
    plan,
    preprocess,
    train,
)
from smoljax.errors import SmoljaxError
from smoljax.platform import skip_absent_tpu

app = typer.Typer(
    name="smoljax",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "SmolVLM, the small vision-language model, in pure JAX.\n\n"
        "Example: `smoljax generate --model smollm2-135m --prompt 'What is the capital of France?'`\n\n"
        "MODEL is a folder (Hugging Face layout, native, or LoRA), a `.gguf` file, or a name that "
        "`smoljax models` lists. Results go to standard output, progress and notes to standard error. "
        "Only `fetch` touches the network."
    ),
)
app.command("generate", rich_help_panel="Run")(generate.generate)
app.command("batch", rich_help_panel="Run")(batch.batch)
app.command("ground", rich_help_panel="Run")(ground.ground)
app.command("embed", rich_help_panel="Run")(embed.embed)
app.command("preprocess", rich_help_panel="Run")(preprocess.preprocess)
app.command("logits", rich_help_panel="Run")(preprocess.logits)
app.command("train", rich_help_panel="Train and measure")(train.train)
app.command("plan", rich_help_panel="Train and measure")(plan.plan)
app.command("eval", rich_help_panel="Train and measure")(eval.evaluate)
app.command("bench", rich_help_panel="Train and measure")(bench.bench)
app.command("models", rich_help_panel="Models")(inspect.models)
app.command("inspect", rich_help_panel="Models")(inspect.inspect)
app.command("fetch", rich_help_panel="Models")(convert.fetch)
app.command("init", rich_help_panel="Models")(convert.init)
app.command("convert", rich_help_panel="Models")(convert.convert)
app.command("export", rich_help_panel="Models")(export.export)


def _version(value: bool) -> None:
    if value:
        import smoljax

        print(f"smoljax {smoljax.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On failure, print the traceback too.")] = False,
) -> None:
    """Options before the sub-command."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 the work failed, 2 the call was wrong."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    skip_absent_tpu()
    warnings.showwarning = lambda message, *_, **__: print(f"smoljax: note: {message}", file=sys.stderr)
    sys.exit(_run(args, debug))


def _run(args: list[str], debug: bool) -> int:
    command: Any = typer.main.get_command(app)
    try:
        # Not command.main(): it would turn a closed pipe and Ctrl-C into exits of its own.
        with command.make_context("smoljax", args) as context:
            command.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print()
        return _fail("interrupted", 1)
    except BrokenPipeError:  # the reader of our output has gone, as in `smoljax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        return 0
    except Exception as error:
        if hasattr(error, "exit_code") and not hasattr(error, "format_message"):  # --help, --version
            return int(error.exit_code)  # type: ignore[attr-defined]
        if debug:
            traceback.print_exc()
        if isinstance(error, SmoljaxError):
            return _fail(str(error), error.exit_status)
        if hasattr(error, "format_message"):  # click's and typer's own complaints about the call
            message = error.format_message()  # type: ignore[attr-defined]
            return _fail(message, 2) if message else 2
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}", 1)
        if isinstance(error, MemoryError):
            return _fail("out of memory; try --dtype bfloat16, --longest-edge or --no-split", 1)
        return _fail(f"{type(error).__name__}: {error} (a bug; --debug shows where)", 1)


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"smoljax: error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
