"""Makes the weights, starts the contenders, asks them in turn, and compares."""

import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from smoljax import hub
from smoljax.bench.contender import Contender, start
from smoljax.bench.figures import FIGURES, Figure
from smoljax.bench.gguf_copies import write_copy
from smoljax.convert.convert import convert
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.quantised import Quantisation
from smoljax.untrained import make_untrained

#: What a peer needs to be found.
PEERS = {"transformers": ("torch", "transformers"), "llama.cpp": ("xllamacpp", "gguf")}
#: How far losses of about 11 may be apart; later steps stand on updates that round otherwise.
LOSSES_APART = 1e-3
Said = Callable[[str], None]


def found_peers() -> dict[str, str]:
    """Installed peers by name, with their versions."""
    found: dict[str, str] = {}
    for name, modules in PEERS.items():
        if all(importlib.util.find_spec(module) for module in modules):
            found[name] = ", ".join(f"{module} {version(module)}" for module in modules)
    return found


def chosen(what: tuple[str, ...], peers: tuple[str, ...]) -> list[Figure]:
    """The figures of these keys or groups (all where none is named) whose contenders can run.

    Raises:
      UsageError: an unknown name.
    """
    known = {figure.key for figure in FIGURES} | {figure.group for figure in FIGURES}
    if unknown := [name for name in what if name not in known]:
        raise UsageError(f"nothing is called {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return [
        figure
        for figure in FIGURES
        if (not what or {figure.key, figure.group} & set(what))
        and (figure.peer.startswith("smoljax") or figure.peer.split()[0] in peers)
    ]


def measure(
    figures: list[Figure],
    repeats: int = 5,
    threads: int | None = None,
    workdir: Path | None = None,
    say: Said = lambda _: None,
) -> dict[str, Any]:
    """Every figure, its contenders asked in turn `repeats` times after one call that warms up.

    Args:
      figures: what `chosen` gives.
      repeats: timed calls of each contender.
      threads: of every contender; None: the cores of this machine.
      workdir: keeps the weights for the next time (3 GB); None: a folder that is deleted.
      say: told what is going on.

    Raises:
      SmoljaxError: a contender failed.
    """
    threads = threads or os.cpu_count() or 1
    result: dict[str, Any] = {"threads": threads, "repeats": repeats, "peers": found_peers(), "rows": []}
    with _folder(workdir) as place, ExitStack() as stack:
        weights, running = Weights(place, say), dict[str, Contender]()
        processes: dict[str, list[list[dict[str, Any]]]] = {}

        def contender(name: str) -> Contender:
            if name not in running:
                module, spec = weights.spec(name)
                made = start(name, module, {**spec, "threads": threads}, threads)
                running[name] = stack.enter_context(_closing(made))
            return running[name]

        judge = stack.enter_context(_closing(start("limits", "smoljax.bench.ours", {"model": ""}, threads)))
        result["limits"] = judge.ask("limits")
        for figure in figures:
            say(f"{figure.title}: {figure.ours} and {figure.peer}")
            if figure.kind != "call":
                while running:  # what waits holds memory
                    running.popitem()[1].close()
                ran = json.dumps([figure.ours, figure.settings, figure.peer, figure.do, figure.what])
                if ran not in processes:
                    specs = [(name, *weights.spec(name)) for name in (figure.ours, figure.peer)]
                    specs[0][2].update(figure.settings)
                    processes[ran] = _run_processes(figure, specs, repeats, threads)
                result["rows"].append(_compare_processes(figure, processes[ran]))
                continue
            pair = [contender(figure.ours), contender(figure.peer)]
            result["rows"].append(_compare(figure, pair, repeats))
            if figure.do == "decode" and figure.ours.startswith("smoljax"):
                row, held = result["rows"][-1], pair[0].ask("weights")
                row["weight_bytes"] = held["bytes"]
                row["memory_share"] = held["decode_bytes"] / row["ours_s"] / 1e9 / result["limits"]["gb_s"]
            if "vision_gflop" in (row := result["rows"][-1]):
                row["vision_share"] = row["vision_gflop"] / row["vision_s"] / result["limits"]["gflops"]
        result["limits_after"] = judge.ask("limits")
    return result


def _compare(figure: Figure, pair: list[Contender], repeats: int) -> dict[str, Any]:
    asked = (figure.what, figure.peer_what or figure.what)
    warm = [one.ask(figure.do, **what) for one, what in zip(pair, asked, strict=True)]
    calls: list[list[dict[str, Any]]] = [[], []]
    for turn in range(repeats):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            calls[side].append(pair[side].ask(figure.do, **asked[side]))
    row = _row(figure, [[call["seconds"] for call in side] for side in calls])
    if "ids" in warm[0] and "ids" in warm[1]:
        row["same_ids"] = warm[0]["ids"] == warm[1]["ids"]
    for key in ("vision_s", "vision_gflop", "passes", "drafted", "accepted"):
        if key in calls[0][0]:
            row[key] = statistics.median(call[key] for call in calls[0])
    return row


def _run_processes(
    figure: Figure, specs: list[tuple[str, str, dict[str, Any]]], repeats: int, threads: int
) -> list[list[dict[str, Any]]]:
    """What processes of both sides answered, with `start_s` and `peak_gb` of each; they run in turn, each alone.

    The first of each side fills caches and does not count.
    """
    found: list[list[dict[str, Any]]] = [[], []]
    for turn in range(min(repeats, 3) + 1):
        for side, (name, module, spec) in enumerate(specs):
            started = time.perf_counter()
            with _closing(start(name, module, {**spec, "threads": threads}, threads)) as process:
                answer = process.ask(figure.do, **figure.what)
                seconds = time.perf_counter() - started
                peak = process.ask("peak")["bytes"] / 1e9
            if turn:
                found[side].append({**answer, "start_s": seconds, "peak_gb": peak})
    return found


def _compare_processes(figure: Figure, found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    key = {"alone": "seconds", "start": "start_s", "peak": "peak_gb"}[figure.kind]
    row = _row(figure, [[answer[key] for answer in side] for side in found])
    ours, theirs = (side[-1].get("losses") for side in found)
    if ours and theirs:
        row["loss_difference"] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return row


def _row(figure: Figure, values: list[list[float]]) -> dict[str, Any]:
    """A comparison of what both sides took, in seconds or gigabytes: less is better, so the ratio is theirs to ours."""
    ours, theirs = (statistics.median(side) for side in values)
    return {
        "figure": figure.key,
        "title": figure.title,
        "ours_name": figure.ours,
        "peer_name": figure.peer,
        "unit": "tok/s" if figure.tokens else "GB" if figure.kind == "peak" else "s",
        "ours": figure.tokens / ours if figure.tokens else ours,
        "peer": figure.tokens / theirs if figure.tokens else theirs,
        "ours_s": ours,
        "ratio": theirs / ours,
        "ratios": [b / a for a, b in zip(*values, strict=True)],
        "target": figure.target,
        "reached": None if figure.target is None else theirs / ours >= figure.target,
        "values": values,
    }


class Weights:
    """The models that contenders run, made when first wanted."""

    def __init__(self, folder: Path, say: Said) -> None:
        self.folder, self.say = folder, say

    def spec(self, name: str) -> tuple[str, dict[str, Any]]:
        """The module of a contender and what it is started with, by a name such as "smoljax 256M int8"."""
        who, size, kind = name.split()
        if kind == "training":
            ours = who == "smoljax"
            module = f"smoljax.bench.{'train_ours' if ours else 'train_theirs'}"
            return module, {"model": str(self._native() if ours else self._hf())}
        if who == "llama.cpp":
            return "smoljax.bench.llama", {"model": str(self._gguf(kind))}
        if who == "transformers":
            return "smoljax.bench.theirs", {"model": str(self._hf()), "dtype": kind}
        model = self._native(kind) if size == "256M" else self._gguf("F32")
        return "smoljax.bench.ours", {"model": str(model), "dtype": "float32", "weights": kind}

    def _native(self, kind: str = "float32") -> Path:
        if kind in get_args(Quantisation):
            folder = self.folder / kind
            if not folder.exists():
                convert(self._native(), folder, quantise=kind)  # type: ignore[arg-type]
            return folder
        folder = self.folder / "native"
        if not folder.exists():
            self.say("random weights of SmolVLM-256M's geometry (1 GB)")
            make_untrained("smolvlm-256m", folder, seed=0, tokenizer="smollm2-135m", dtype="float32")
        return folder

    def _hf(self) -> Path:
        folder = self.folder / "hf"
        if not folder.exists():
            convert(self._native(), folder, "hf")
        return folder

    def _gguf(self, kind: str) -> Path:
        found = self.folder / f"smollm2-135m-{kind}.gguf"
        if not found.exists():
            sources = list(self.folder.glob("*Q4_1.gguf"))
            source = sources[0] if sources else hub.download_gguf("smollm2-135m", self.folder)
            self.say(f"SmolLM2-135M in {kind}")
            write_copy(source, found, kind)
        return found


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
        return
    given.mkdir(parents=True, exist_ok=True)
    yield given


@contextmanager
def _closing(contender: Contender) -> Iterator[Contender]:
    try:
        yield contender
    finally:
        contender.close()


def tokenizer_is_here() -> None:
    """Raises UsageError where the tokenizer that random weights borrow has yet to be fetched."""
    if "smollm2-135m" not in hub.fetched():
        raise UsageError("the benchmark takes SmolLM2's tokenizer; get it with: smoljax fetch smollm2-135m")


def check(result: Mapping[str, Any]) -> None:
    """Raises SmoljaxError where contenders with the same float32 weights said different things."""
    for row in result["rows"]:
        if row.get("same_ids") is False and row["figure"] in ("decode_float32", "first_token"):
            raise SmoljaxError(
                f"{row['title']}: {row['ours_name']} and {row['peer_name']} chose different tokens"
            )
        if (apart := row.get("loss_difference", 0.0)) > LOSSES_APART:
            raise SmoljaxError(
                f"{row['title']}: losses of {row['ours_name']} and {row['peer_name']} are {apart:.2g} apart"
            )
