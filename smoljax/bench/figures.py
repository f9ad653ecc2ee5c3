"""What is measured, of whom, and what it should reach."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One comparison: an action that contenders are asked for in turn.

    Attributes:
      key: its name in JSON and for `--what`.
      title: its name in tables.
      do, what: the action and its arguments (`smoljax.bench.contender`).
      ours, peer: names of contenders.
      tokens: of one action, for tokens a second; 0 where seconds are compared.
      target: the least ratio, ours over peer's in tokens a second, or peer's seconds over ours; None: reported only.
      group: a name for several, for `--what`.
      kind: "call": a call in a process that is warm; "alone": a call in a process that does nothing else; "start": a
        process from its start to the call's end; "peak": the most memory of a process that did the call. Figures of
        the last three that differ in this alone are read off the same processes.
      peer_what: the peer's arguments where they differ.
      settings: what our process is started with beside its name; not for calls.
    """

    key: str
    title: str
    do: str
    what: dict[str, Any]
    ours: str
    peer: str
    tokens: int
    target: float | None
    group: str = ""
    kind: Literal["call", "alone", "start", "peak"] = "call"
    peer_what: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def _decode(key: str, title: str, ours: str, peer: str, target: float | None, rows: int = 1) -> Figure:
    what = {"prompt": 100, "new": 64, "rows": rows}
    return Figure(key, title, "decode", what, ours, peer, rows, target, "decode")


def _prefill(prompt: int, ours: str, peer: str, target: float | None) -> Figure:
    key = f"prefill_{prompt}_{'llama' if peer.startswith('llama') else 'transformers'}"
    return Figure(
        key,
        f"prefill of {prompt} tokens, {ours.split()[-1]}",
        "prefill",
        {"prompt": prompt},
        ours,
        peer,
        prompt,
        target,
        "prefill",
    )


def _whole(
    kind: Literal["start", "peak"], title: str, what: dict[str, Any], do: str, target: float, weights: str
) -> Figure:
    ours, peer = f"smoljax 256M {weights}", "transformers 256M float32"
    settings = {"lean": True} if kind == "peak" else {}  # as `smoljax generate --lean` loads it
    key = f"{kind}_{weights}"
    return Figure(key, title, do, what, ours, peer, 0, target, kind, kind, settings=settings)


def _train(key: str, title: str, kind: Literal["alone", "peak"], remat: str, target: float | None) -> Figure:
    what, title = {"rows": 2, "words": 128, "steps": 4}, f'{title}, batch 2, float32, remat "{remat}"'
    ours, peer = "smoljax 256M training", "transformers 256M training"
    return Figure(key, title, "step", what, ours, peer, 0, target, "train", kind, settings={"remat": remat})


FIGURES: tuple[Figure, ...] = (
    _decode("decode_float32", "decode, float32", "smoljax 256M float32", "transformers 256M float32", 2.3),
    _decode("decode_bfloat16_own", "decode, bfloat16", "smoljax 256M bfloat16", "smoljax 256M float32", 1.1),
    _decode("decode_int8_own", "decode, int8", "smoljax 256M int8", "smoljax 256M float32", 1.0),
    _decode("decode_int4_own", "decode, int4", "smoljax 256M int4", "smoljax 256M float32", None),
    _decode(
        "decode_bfloat16", "decode, bfloat16", "smoljax 256M bfloat16", "transformers 256M bfloat16", None
    ),
    _decode(
        "streams_8", "8 streams, float32", "smoljax 256M float32", "transformers 256M float32", 2.0, rows=8
    ),
    _prefill(512, "smoljax 256M float32", "transformers 256M float32", 1.15),
    Figure(
        "first_token",
        "one tile + 100 words to the first token, float32",
        "first_token",
        {"words": 100},
        "smoljax 256M float32",
        "transformers 256M float32",
        0,
        1.05,
        "first_token",
    ),
    _decode("decode_llama_f32", "decode, float32", "smoljax 135M float32", "llama.cpp 135M F32", 0.9),
    _decode("decode_llama_q8", "decode, int8", "smoljax 135M int8", "llama.cpp 135M Q8_0", None),
    _prefill(128, "smoljax 135M float32", "llama.cpp 135M F32", 1.8),
    Figure(
        "lookup",
        "64 tokens that repeat the prompt, guessing ahead",
        "repeat",
        {"new": 64, "lookup": True},
        "smoljax 135M float32",
        "smoljax 135M float32",
        64,
        2.0,
        "lookup",
        peer_what={"new": 64, "lookup": False},
    ),
    Figure(
        "draft",
        "64 tokens of free text, with a draft",
        "free",
        {"new": 64, "draft": True},
        "smoljax 135M float32",
        "smoljax 135M float32",
        64,
        None,
        "draft",
        peer_what={"new": 64, "draft": False},
    ),
    Figure(
        "again",
        "a second question about a picture to its first token, what was read kept",
        "again",
        {"words": 20, "kept": True},
        "smoljax 256M float32",
        "smoljax 256M float32",
        0,
        None,
        "again",
        peer_what={"words": 20, "kept": False},
    ),
    _whole("start", "process start to first token", {"words": 100}, "first_token", 2.5, "float32"),
    _whole("peak", "peak memory of an answer, float32", {"words": 100, "new": 64}, "answer", 1.25, "float32"),
    _whole("peak", "peak memory of an answer, int8", {"words": 100, "new": 64}, "answer", 2.5, "int8"),
    _train("train_step", "training step", "alone", "dots", 1.05),
    _train("train_peak_dots", "peak memory of training", "peak", "dots", None),
    _train("train_step_full", "training step", "alone", "full", None),
    _train("train_peak", "peak memory of training", "peak", "full", 1.43),
)
