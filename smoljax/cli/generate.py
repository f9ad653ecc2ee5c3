"""`smoljax generate`: pictures, a video or plain text → text."""

import sys
import time
from typing import Annotated, Any

import typer

from smoljax.cli import common
from smoljax.errors import UsageError


@common.takes_prompt
def generate(
    model: common.ModelOption,
    sample: dict[str, Any],
    max_new_tokens: common.NewTokensOption = 128,
    temperature: common.TemperatureOption = 0.0,
    top_p: common.TopPOption = 1.0,
    top_k: common.TopKOption = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; the same seed gives the same answer.")] = 0,
    lookup: Annotated[
        bool,
        typer.Option("--lookup", help="Guess ahead from prompt and answer: the same words, sooner."),
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Guess ahead by a smaller model of the same vocabulary: the same words.",
            show_default=False,
        ),
    ] = None,
    draft_weights: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|int8|int4",
            help="How those of --draft are kept.",
            show_default="as --weights",
        ),
    ] = None,
    draft_layers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Guess ahead by the model's own first layers.", show_default=False
        ),
    ] = None,
    guesses: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Tokens guessed ahead of a pass.", show_default="4, with --lookup 8"
        ),
    ] = None,
    dtype: common.DtypeOption = None,
    weights: common.WeightsOption = None,
    cache: common.CacheOption = None,
    lean: Annotated[
        bool, typer.Option("--lean", help="Least memory: keep only the weights that are being read.")
    ] = False,
    json: common.JsonOption = False,
) -> None:
    """Answer a prompt about pictures, a video, or text alone.

    Example: `smoljax generate -m SmolVLM-256M-Instruct -i photo.jpg -p 'What is on the table?'`
    """
    from smoljax.generation.options import Draft, Lookup, Sampling, Timings
    from smoljax.models import enable_compilation_cache, load

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    asked = lookup + (draft is not None) + (draft_layers is not None)
    if asked > 1:
        raise UsageError("give one of --lookup, --draft and --draft-layers")
    if guesses is not None and not asked:
        raise UsageError("--guesses says how far --lookup, --draft or --draft-layers guess: give one of them")
    if draft_weights is not None and draft is None:
        raise UsageError("--draft-weights says how the weights of --draft are kept: name that model")
    enable_compilation_cache()
    vlm = load(model, dtype=dtype, background=True, weights=weights, cache=cache, lean=lean)  # type: ignore[arg-type]
    started = time.perf_counter()
    batch = vlm.prepare(**sample)
    preprocess_s = time.perf_counter() - started
    timings, chunks = Timings(), []
    pieces: list[str] = []
    ahead = Lookup(guesses or Lookup.guesses) if lookup else None
    if draft is not None:
        other = load(draft, dtype=dtype, background=True, weights=draft_weights or weights)  # type: ignore[arg-type]
        ahead = Draft(guesses or Draft.guesses, model=other)
    elif draft_layers is not None:
        ahead = Draft(guesses or Draft.guesses, layers=draft_layers)
    for piece in vlm.stream_text(batch, max_new_tokens, sampling, timings, chunks, ahead):
        pieces.append(piece)
        if not json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    generation = vlm.generator.collect(chunks)[0]
    if not json:
        print()
        if sys.stderr.isatty():
            common.note(f"{len(generation.token_ids)} tokens, {timings.decode_tokens_per_s:.1f} a second")
    for line in vlm.notes:
        common.note(f"note: {line}")
    if vlm.untrained:
        common.note(f"note: {model} is untrained (random weights): these words mean nothing")
    if not json:
        return
    result: dict[str, Any] = {
        "text": "".join(pieces),
        "token_ids": generation.token_ids,
        "prompt_tokens": batch.prompt_tokens[0],
        "image_tokens": batch.image_tokens[0],
        "tiles": batch.tiles[0],
        "finish_reason": generation.finish_reason,
        "timings": {
            "load_s": round(vlm.load_s, 4),
            "preprocess_s": round(preprocess_s, 4),
            "compile_s": round(timings.compile_s, 4),
            "vision_s": round(timings.vision_s, 4),
            "prefill_s": round(timings.prefill_s, 4),
            "decode_s": round(timings.decode_s, 4),
            "decode_tokens_per_s": round(timings.decode_tokens_per_s, 2),
            "passes": timings.passes,
            "drafted": timings.drafted,
            "accepted": timings.accepted,
        },
    }
    common.print_json(result)
