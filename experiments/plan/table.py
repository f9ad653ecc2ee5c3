"""The plans of docs/plan.md: SmolVLM2's sizes on five slices, at 2048 and 8192 tokens; and how a step scales.

    python -m experiments.plan.table [--only NAME …]       # a few minutes a plan; what is compiled is kept in runs/plan
    python -m experiments.plan.table --scaling             # 2.2B on 8 to 256 chips of v5e, the same rows a chip

Needs `pip install 'smoljax[tpu]'`. Rows go to experiments/plan/results/, the curve to docs/plan/scaling.png.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, fill, machine, write_json
from experiments.plan import smolvlm
from experiments.plan.kept import COMPILED, PAGE, kept_name

RESULTS = ROOT / "experiments" / "plan" / "results"
PICTURE = ROOT / "docs" / "plan" / "scaling.png"


@dataclass(frozen=True)
class Plan:
    """One planned run.

    Attributes:
      size: of the model.
      topology: the slice.
      tokens: of a row.
      rows: of a chip.
      remat: what the backward pass recomputes.
      fsdp: ways parameters are split; None: all chips, at most 128 (see `smolvlm.config`).
    """

    size: str
    topology: str
    tokens: int
    rows: int
    remat: str = "full"
    fsdp: int | None = None

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.size}-{self.topology.replace(':', '-')}-{self.tokens}"


PLANS = {
    plan.name: plan
    for plan in (
        Plan("256m", "v5e:2x4", 2048, 8, fsdp=1),
        Plan("256m", "v5e:2x4", 8192, 2, fsdp=1),
        Plan("500m", "v5e:4x4", 2048, 8),
        Plan("500m", "v5e:4x4", 8192, 2),
        Plan("2.2b", "v5e:16x16", 2048, 2, "projections"),
        Plan("2.2b", "v5e:16x16", 8192, 2),
        Plan("2.2b", "v6e:16x16", 2048, 16),
        Plan("2.2b", "v6e:16x16", 8192, 4),
        Plan("2.2b", "v5p:4x4x4", 2048, 16),
        Plan("2.2b", "v5p:4x4x4", 8192, 4),
    )
}
SCALING = {
    plan.name: plan
    for plan in (
        Plan("2.2b", f"v5e:{shape}", 2048, 4) for shape in ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
    )
}


def make(plan: Plan, out: Path) -> None:
    """Compiles unless that was done, predicts, and writes the row."""
    from smoljax.plan.chips import read_topology
    from smoljax.plan.compile import Compiled, compile_step
    from smoljax.plan.plan import training_report

    topology = read_topology(plan.topology)
    config = smolvlm.config(
        plan.size,
        tokens=plan.tokens,
        rows=plan.rows * topology.chips,
        fsdp=plan.fsdp or min(topology.chips, 128),
        remat=plan.remat,  # type: ignore[arg-type]
    )
    compiled = COMPILED / kept_name(plan.name, config)
    if not compiled.exists():
        compile_step(config, topology).save(compiled)
    found = training_report(config, Compiled.load(compiled))
    write_json(out, {"planned": asdict(plan), "plan": found, "machine": machine()})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | slice | row | rows a chip | memory, GiB of | step s | tokens/s | tiles/s | MFU | links, share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        planned, plan = row["planned"], row["plan"]
        memory = f"{plan['hbm_bytes_per_chip'] / 2**30:.1f} of {plan['hbm']['available'] / 2**30:.2f}"
        head = f"| {planned['size']} | {planned['topology']} | {planned['tokens']} | {planned['rows']} | {memory} "
        if plan["predicted_step_s"] is None:
            lines.append(f"{head}| does not fit | | | | |")
            continue
        step = plan["predicted_step_s"]
        lines.append(
            f"{head}| {step:.2f} | {plan['tokens_per_s']:,.0f} | {plan['tiles_per_s']:,.0f} "
            f"| {100 * plan['predicted_mfu']:.1f} % | {100 * plan['predicted_s']['links'] / step:.0f} % |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> None:
    """Step time, what stands still in it for the links, and MFU, over chips."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["plan"]["chips"])
    chips = [row["plan"]["chips"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    times = [row["plan"]["predicted_s"] for row in rows]
    left.plot(chips, [time["scheduled"] for time in times], "o-", label="step")
    left.plot(chips, [time["links"] for time in times], "s--", label="collectives by themselves")
    left.plot(chips, [time["waiting"] for time in times], "^:", label="standing still for them")
    left.set(xscale="log", xlabel="chips (v5e)", ylabel="seconds", ylim=(0, None))
    left.set_xticks(chips, [str(count) for count in chips])
    left.legend(frameon=False)
    right.plot(chips, [100 * row["plan"]["predicted_mfu"] for row in rows], "o-")
    right.set(xscale="log", xlabel="chips (v5e)", ylabel="predicted MFU, %", ylim=(0, 100))
    right.set_xticks(chips, [str(count) for count in chips])
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scaling", action="store_true", help="the scaling curve in place of the table")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from smoljax.platform import skip_absent_tpu

    skip_absent_tpu()
    plans, folder = (SCALING, "scaling") if args.scaling else (PLANS, "plans")
    if args.one:
        make(plans[args.one], RESULTS / folder / f"{args.one}.json")
        return
    for name in args.only or plans:
        # A process each: the compiler keeps its memory.
        command = [sys.executable, "-m", "experiments.plan.table", "--one", name]
        subprocess.run([*command, *(["--scaling"] if args.scaling else [])], cwd=ROOT, check=True)
    done = [path for name in plans if (path := RESULTS / folder / f"{name}.json").exists()]
    rows = [json.loads(path.read_text()) for path in done]
    if args.scaling:
        draw(rows)
    fill(PAGE, folder, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
