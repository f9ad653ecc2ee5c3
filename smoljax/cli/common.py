"""What several commands share: the options that make a prompt, how a result is printed."""

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from smoljax.errors import SmoljaxError, UsageError

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Model folder, .gguf file or name.")
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", "-i", metavar="FILE", help="A picture; may be given several times.", show_default=False
    ),
]
VideoOption = Annotated[
    list[Path] | None,
    typer.Option("--video", metavar="FILE", help="A video file, or a folder of frames.", show_default=False),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="What to ask; - reads standard input.", show_default=False
    ),
]
MessagesOption = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        metavar="F.json",
        help='A whole chat instead of --prompt: a JSON list of {"role", "content"}.',
        show_default=False,
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="TEXT",
        help="Text to continue as it stands, with no chat template.",
        show_default=False,
    ),
]
LongestEdgeOption = Annotated[
    int | None,
    typer.Option(
        "--longest-edge",
        metavar="PX",
        min=1,
        help="Resize a picture's longer side, up or down, to this many pixels (at most 4096): fewer are fewer tokens.",
        show_default="the checkpoint's",
    ),
]
NoSplitOption = Annotated[
    bool, typer.Option("--no-split", help="One tile a picture: least tokens, least detail.")
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps", help="Frames a second of a folder of frames; a video file knows its own.", show_default=False
    ),
]
VideoStyleOption = Annotated[
    str,
    typer.Option(
        "--video-style", metavar="hf|train|vlmevalkit", help="How the frames of a video are introduced."
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16",
        help="Of weights and activations.",
        show_default="float32 on CPU, else bfloat16",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="float32|bfloat16|int8|int4",
        help="How weights are kept; int8 and int4 round them.",
        show_default="as stored where quantised, else as --dtype",
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="float32|bfloat16|int8",
        help="How keys and values of the tokens so far are kept; int8 rounds them.",
        show_default="as --dtype",
    ),
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the best token; above, tokens are drawn.")]
TopPOption = Annotated[float, typer.Option(help="Draw among the fewest tokens that hold this probability.")]
TopKOption = Annotated[int, typer.Option(help="Draw among this many best tokens; 0: all.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def prompt_options(
    prompt: PromptOption = None,
    image: ImageOption = None,
    video: VideoOption = None,
    fps: FpsOption = None,
    messages: MessagesOption = None,
    text: TextOption = None,
    longest_edge: LongestEdgeOption = None,
    no_split: NoSplitOption = False,
    video_style: VideoStyleOption = "hf",
) -> dict[str, Any]:
    """The keyword arguments of `Processor.__call__` from a command's options.

    Raises:
      UsageError: not exactly one of --prompt, --messages and --text, or an empty prompt with nothing to look at.
      SmoljaxError: the file of messages cannot be read.
    """
    if sum(option is not None for option in (prompt, messages, text)) != 1:
        raise UsageError("give exactly one of --prompt, --messages and --text")
    sample: dict[str, Any] = {"video_style": video_style}
    if messages is not None:
        sample["messages"] = read_messages(messages)
    elif text is not None:
        sample["text"] = text
    else:
        words = sys.stdin.read() if prompt == "-" else str(prompt)
        sample["prompt"] = words
        if not words.strip() and not image and not video:
            raise UsageError("the prompt is empty and there is no picture")
    if image:
        sample["images"] = image
    if video:
        from smoljax.processing.video import Video

        sample["videos"] = [Video(path, fps) for path in video]
    if longest_edge is not None:
        sample["longest_edge"] = longest_edge
    if no_split:
        sample["split"] = False
    return sample


def takes_prompt(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `prompt_options`; its parameter `sample` gets what they make."""
    own = inspect.signature(command).parameters
    shared = inspect.signature(prompt_options).parameters
    first, *rest = (parameter for name, parameter in own.items() if name != "sample")

    @functools.wraps(command)
    def run(**options: Any) -> None:
        sample = prompt_options(**{name: options.pop(name) for name in shared})
        command(sample=sample, **options)

    together = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (first, *shared.values(), *rest)
    ]
    run.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in together}
    return run


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The chat in a JSON file: a list of messages, or an object with a key `messages`.

    Relative picture paths inside the messages are taken relative to the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SmoljaxError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SmoljaxError(f"{path}: not valid JSON ({error})") from error
    if isinstance(data, dict):
        data = data.get("messages")
    if not isinstance(data, list):
        raise UsageError(f'{path}: must hold a JSON list of {{"role", "content"}} messages')
    for message in data:
        content = message.get("content") if isinstance(message, dict) else None
        for item in content if isinstance(content, list) else []:
            for key in ("image", "path", "video"):
                if isinstance(item, dict) and isinstance(item.get(key), str):
                    item[key] = str(path.parent / item[key])
    return data


def console(stderr: bool = False) -> Any:
    """A rich console that neither cuts nor wraps where no person is looking."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with status 1; `main` knows better

    stream = sys.stderr if stderr else sys.stdout
    return Piped(highlight=False, stderr=stderr, width=None if stream.isatty() else 200)


def check_npz(path: Path) -> None:
    """Refuses an output file that cannot be written, before any work is done."""
    if path.suffix != ".npz":
        raise UsageError(f"{path}: the output file must end in .npz")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")


def note(message: str) -> None:
    """A line for the person at the terminal, on standard error."""
    print(message, file=sys.stderr)


def print_json(result: dict[str, Any]) -> None:
    """Exactly one JSON object on standard output; null for what is no finite number."""
    print(json.dumps(_finite(result), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
