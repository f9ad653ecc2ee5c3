"""docs/distillation.md, drawn from docs/results/distillation.json."""

from typing import Any

ARMS = ("alone", "taught")

TEXT = """# A student with and without its teacher

Written by `python -m experiments.distillation.run` from [its result](results/distillation.json), whatever it is. The
student has {student:,} parameters, the teacher (`{model}`) {teacher:,}. Each of {seeds} seeds first learns to see
({dense} steps, shared by both arms), then goes on for {steps} steps of 16 pictures of `scenes`: *alone* with the
next-token loss, *taught* with the KL divergence from the teacher beside it (temperature 2, weight 1). Start, pictures,
order and steps are the same. Evaluated on the first {limit} pictures of `{data}`.

{table}

Shares and F1 in per cent, differences in points. A positive difference favours the teacher; for the loss, a negative
one. The t interval covers the luck of a seed ({freedom} degrees of freedom); the bootstrap covers which pictures were
asked about, the trained models staying as they are.

{verdict}

Minutes a run on {cores} cores, in the mean: dense {minutes[dense]:.1f}, alone {minutes[alone]:.1f}, taught
{minutes[taught]:.1f}. The arms are equal in steps, not in time, since the teacher looks at each picture too. The
commands of all runs are in the result.
"""


def page(result: dict[str, Any]) -> str:
    """The page."""
    training, seeds = result["training"], result["seeds"]
    return TEXT.format(
        student=result["student"]["parameters"],
        teacher=result["teacher"]["parameters"],
        model=result["teacher"]["model"],
        seeds=len(seeds),
        freedom=len(seeds) - 1,
        dense=training[0]["dense"]["steps"],
        steps=training[0]["alone"]["steps"],
        limit=result["limit"],
        data=result["data"],
        table="\n".join(table(seeds, result["figures"])),
        verdict=verdict(result["figures"]),
        cores=result["machine"]["cores"],
        minutes={
            stage: sum(runs[stage]["seconds"] for runs in training) / len(seeds) / 60
            for stage in ("dense", *ARMS)
        },
    )


def table(seeds: list[int], figures: dict[str, Any]) -> list[str]:
    """A row a figure: the teacher, each seed's two students, the mean difference and its two intervals."""
    names = ["", "teacher", *(f"seed {seed}: alone → taught" for seed in seeds)]
    names += ["mean difference", "95 %, seeds (t)", "95 %, pictures (bootstrap)"]
    rows = [names, ["---"] * len(names)]
    for name, found in figures.items():
        share = found["up"]
        cells = [name, _plain(found["teacher"], share)]
        for alone, taught in zip(found["alone"], found["taught"], strict=True):
            cells.append(f"{_plain(alone, share)} → {_plain(taught, share)}")
        cells += [_signed(found["mean"], share), _interval(found["by_seed"], share)]
        rows.append([*cells, _interval(found["by_picture"], share)])
    return [f"| {' | '.join(row)} |" for row in rows]


def verdict(figures: dict[str, Any]) -> str:
    """What the t intervals allow to be said, a sentence each."""
    said: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for name, found in figures.items():
        interval = found["by_seed"]
        if interval is None or interval[0] <= 0 <= interval[1]:
            said["open"].append(name)
        else:
            said["better" if (interval[0] > 0) == found["up"] else "worse"].append(name)
    words = {
        "better": "By the t interval the teacher helps in:",
        "worse": "By the t interval it harms in:",
        "open": "Its interval over seeds includes no difference at all:",
    }
    return "\n".join(f"{words[key]} {'; '.join(names)}." for key, names in said.items() if names)


def _plain(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.4f}"


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+.1f}" if share else f"{value:+.4f}"


def _interval(interval: list[float] | None, share: bool) -> str:
    return "–" if interval is None else f"[{', '.join(_signed(value, share) for value in interval)}]"
