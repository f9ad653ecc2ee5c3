"""`smoljax batch`: a file of requests → a file of answers, many at a time."""

import dataclasses
import json as json_format
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import SmoljaxError, UsageError

if TYPE_CHECKING:
    from smoljax.generation.options import Sampling
    from smoljax.serving import Reply, Serving
    from smoljax.vlm import VLM


@dataclasses.dataclass(frozen=True)
class _Request:
    """One conversation up to where the answer is due, where it stands, and what names its answer."""

    where: str
    names: dict[str, Any]
    sample: dict[str, Any]


def batch(
    model: common.ModelOption,
    requests: Annotated[
        Path,
        typer.Option(
            "--requests",
            "-r",
            metavar="F.jsonl",
            help="Chats and their pictures, one a line (docs/data.md); a last turn of the assistant is not read.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="F.jsonl", help="Where answers go.", show_default="standard output"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Requests that are answered at the same time.")] = 8,
    slots: Annotated[
        int, typer.Option(min=1, help="Tokens of prompt and answer that a row can hold.")
    ] = 2048,
    max_new_tokens: common.NewTokensOption = 128,
    prefix_mb: Annotated[
        int, typer.Option(min=0, help="Memory for beginnings that prompts share; 0: none.")
    ] = 256,
    temperature: common.TemperatureOption = 0.0,
    top_p: common.TopPOption = 1.0,
    top_k: common.TopKOption = 0,
    seed: Annotated[int, typer.Option(help="Of the draws: request n draws with seed + n.")] = 0,
    longest_edge: common.LongestEdgeOption = None,
    no_split: common.NoSplitOption = False,
    dtype: common.DtypeOption = None,
    weights: common.WeightsOption = None,
    json: common.JsonOption = False,
) -> None:
    """Answer many requests: one JSON line each, in the order of the file.

    Rows of one batch take a new request as soon as an answer ends; what prompts have in common, and a picture that is
    asked about again, is read once. --json prints a summary; the answers then go to --out.

    Example: `smoljax batch -m smolvlm-nano --requests chats.jsonl -o answers.jsonl`
    """
    if json and out is None:
        raise UsageError("--json prints the summary on standard output: say where answers go with --out")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    if out is not None and out.exists() and requests.exists() and out.samefile(requests):
        raise UsageError(f"{out}: is the file of requests; write the answers to another")
    from smoljax.generation.options import Sampling
    from smoljax.models import enable_compilation_cache, load

    sampling = Sampling(temperature, top_k, top_p, seed=seed)
    asked = _read(requests)
    enable_compilation_cache()
    vlm = load(model, dtype=dtype, background=True, weights=weights)  # type: ignore[arg-type]
    served = vlm.serve(rows, slots, prefix_bytes=prefix_mb * 2**20)
    options = {"max_new_tokens": max_new_tokens, "longest_edge": longest_edge}
    if no_split:
        options["split"] = False
    started = time.perf_counter()
    with ExitStack() as stack:
        file = sys.stdout if out is None else stack.enter_context(out.open("w", encoding="utf-8"))
        for request, reply in _answers(served, asked, options, sampling):
            line = {**request.names, **dataclasses.asdict(reply)}
            line["id"] = request.names["id"]
            file.write(json_format.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    seconds = time.perf_counter() - started
    _report(vlm, served, model, seconds, json)


def _report(vlm: "VLM", served: "Serving", model: str, seconds: float, json: bool) -> None:
    stats = served.stats
    for line in vlm.notes:
        common.note(f"note: {line}")
    if vlm.untrained:
        common.note(f"note: {model} is untrained (random weights): these words mean nothing")
    speed = stats.new_tokens / seconds
    if not json:
        common.note(
            f"{stats.requests:,} answers of {stats.new_tokens:,} tokens in {seconds:.1f} s, {speed:.1f} a second; "
            f"{stats.cached_tokens:,} of {stats.cached_tokens + stats.prefilled_tokens:,} prompt tokens were known"
        )
        return
    result = {
        "requests": stats.requests,
        "tokens": stats.new_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(speed, 2),
        "prompt_tokens": stats.cached_tokens + stats.prefilled_tokens,
        "cached_tokens": stats.cached_tokens,
        "tiles": stats.tiles,
        "steps": stats.steps,
        "mean_rows": round(stats.mean_rows, 2),
        "compilations": stats.compilations,
    }
    common.print_json(result)


def _answers(
    served: "Serving", asked: list[_Request], options: dict[str, Any], sampling: "Sampling"
) -> Iterator[tuple[_Request, "Reply"]]:
    """Every request with its answer, in order; pictures are opened a few requests ahead."""
    coming = iter(asked)
    numbers: list[int] = []
    done: dict[int, Reply] = {}
    given = 0
    told = time.perf_counter()
    while given < len(asked):
        while served.hungry and (request := next(coming, None)) is not None:
            own = dataclasses.replace(sampling, seed=(sampling.seed + len(numbers)) % 2**32)
            try:
                numbers.append(served.submit(**request.sample, **options, sampling=own))
            except SmoljaxError as error:
                raise type(error)(f"{request.where}: {error}") from error
        done.update((reply.id, reply) for reply in served.step())
        while given < len(numbers) and numbers[given] in done:
            yield asked[given], done.pop(numbers[given])
            given += 1
        if time.perf_counter() - told > 5:
            told = time.perf_counter()
            ended = given + len(done)
            common.note(f"{ended:,} of {len(asked):,} answered, {served.stats.new_tokens:,} tokens")


def _read(path: Path) -> list[_Request]:
    """The requests of a file, every line checked; SmoljaxError names the line."""
    from smoljax.data.jsonl import JsonLines, jsonl_record

    lines = JsonLines(path)
    if not len(lines):
        raise SmoljaxError(f"{path}: no requests")
    found: list[_Request] = []
    for index in range(len(lines)):
        example = lines.example(index)
        where = lines.where(index)
        for key, nested in (("messages", False), ("conversations", True)):
            if isinstance(example.get(key), list):
                talks = example[key] if nested else [example[key]]
                open_ended = [_until_answer(talk) for talk in talks]
                example[key] = open_ended if nested else open_ended[0]
        record = jsonl_record(example)
        for number, talk in enumerate(record.conversations):
            names: dict[str, Any] = {"id": record.id}
            if "conversations" in example:
                names["conversation"] = number
            if not talk[:-1]:
                raise SmoljaxError(f"{where}: nothing is asked: the only turn is the assistant's")
            sample = {"messages": list(talk[:-1]), "images": list(record.images) or None}
            found.append(_Request(where, names, sample))
    return found


def _until_answer(talk: Any) -> Any:
    """A conversation whose last turn is an assistant's, in place of the one that it ends with, if any.

    So requests are checked as what a model learns from is, which always ends so.
    """
    if not isinstance(talk, list):
        return talk
    last = talk[-1] if talk else None
    asked = talk[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else talk
    return [*asked, {"role": "assistant", "content": "…"}]
