"""The predictor against step times that MaxText publishes: the same shapes, compiled here, predicted, compared.

    python -m experiments.plan.published [--runs llama3.1-8b-v6e-2x4 …]    # minutes a run; what is compiled is kept
    python -m experiments.plan.published --table                          # only the table, from the stored rows

Needs `pip install 'smoljax[tpu]'`. Rows go to experiments/plan/results/published/. What is compiled is this project's
training step of a Llama of the published sizes, with AdamW, float32 parameters and bfloat16 products, flash attention,
scanned layers, and the published mesh, batch and sequence; where MaxText keeps projections in the host's memory so does
the step here.

Sources (read 2026-11; step times are quoted from logs in the recipe's README unless said):
AI-Hypercomputer/tpu-recipes, training/trillium/{Llama3.1-8B,Llama3.1-70B,Mistral-7B}-MaxText; AI-Hypercomputer/maxtext,
MaxText/configs/v5e/README.md and v5p/README.md at commit 76bd53b0 with the scripts beside them. These last two tables
give FLOP/s, from which the step time is derived by the rule that MaxText counted with then (parameters · 6 · tokens,
and attention; ±1.5 % for how attention was counted). Their model has a ReLU MLP of two matrices; here it is a gated one
of two thirds of the width: the same FLOPs and the same parameters. Of v5p they kept all products but the first of the
MLP (`save_dot_except_mlpwi`); here those of attention (the MLP's last one the backward pass does not need).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.commands import ROOT, fill, machine, write_json
from experiments.plan.kept import COMPILED, PAGE, kept_name
from smoljax.config import Remat, SmolVLMConfig, TextConfig
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import MeshConfig, ModelConfig, NextToken, OptimizerConfig, TrainConfig

RESULTS = ROOT / "experiments" / "plan" / "results" / "published"


def _llama(layers: int, width: int, mlp: int, heads: int, kv: int, head: int, vocab: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        max_positions=8192,
    )


MODELS = {
    "llama3.1-8b": _llama(32, 4096, 14336, 32, 8, 128, 128256),
    "llama3.1-70b": _llama(80, 8192, 28672, 64, 8, 128, 128256),
    "mistral-7b": _llama(32, 4096, 14336, 32, 8, 128, 32000),
    "maxtext-16b": _llama(32, 5120, 21888, 32, 32, 256, 32768),
    "maxtext-32b": _llama(32, 10240, 21888, 32, 32, 256, 32768),
    "maxtext-64b": _llama(64, 10240, 21888, 32, 32, 256, 32768),
    "maxtext-128b": _llama(64, 10240, 43648, 64, 64, 256, 32768),
}
TIED = {name for name in MODELS if name.startswith("maxtext")}


@dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
      model: a key of MODELS.
      topology: the slice.
      rows: of a chip.
      tokens: of a row.
      seconds: of a step, as published or derived.
      tensor: ways of tensor parallelism; the rest is FSDP.
      remat: what the published run kept, in this project's words.
      quoted: whether the step time itself is published.
    """

    model: str
    topology: str
    rows: int
    tokens: int
    seconds: float
    tensor: int = 1
    remat: Remat = "offload"
    quoted: bool = True

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.model}-{self.topology.replace(':', '-')}"


RUNS = {
    run.name: run
    for run in (
        Run("llama3.1-8b", "v6e:2x4", 3, 8192, 3.443),
        Run("llama3.1-8b", "v6e:8x8", 5, 8192, 5.652),
        Run("llama3.1-8b", "v6e:16x16", 4, 8192, 4.546),
        Run("llama3.1-70b", "v6e:8x8", 2, 8192, 18.688),
        Run("llama3.1-70b", "v6e:16x16", 5, 8192, 42.656),
        Run("mistral-7b", "v6e:2x4", 6, 8192, 6.320),
        Run("maxtext-16b", "v5e:16x16", 6, 2048, 10.66, remat="full", quoted=False),
        Run("maxtext-32b", "v5e:16x16", 4, 2048, 12.52, remat="full", quoted=False),
        Run("maxtext-64b", "v5e:16x16", 2, 2048, 13.94, remat="full", quoted=False),
        Run("maxtext-128b", "v5p:4x4x8", 2, 2048, 10.41, tensor=8, remat="projections", quoted=False),
        Run("maxtext-128b", "v5p:4x8x8", 2, 2048, 10.38, tensor=8, remat="projections", quoted=False),
    )
}


def config(run: Run) -> TrainConfig:
    """The published run in this project's words."""
    from smoljax.plan.chips import read_topology

    chips = read_topology(run.topology).chips
    architecture = SmolVLMConfig(
        vision=None,
        text=MODELS[run.model],
        scale_factor=None,
        image_token_id=None,
        tie_embeddings=run.model in TIED,
        model_type="llama",
    )
    return TrainConfig(
        run.name,
        ModelConfig(architecture, "none", dtype="bfloat16", scan_layers=True, remat=run.remat),
        DataConfig(
            (SourceConfig("none.jsonl"),),
            batch_size=run.rows * chips,
            sequence_length=run.tokens,
            max_tiles=0,
            branches=False,
        ),
        (NextToken(chunk=2048),),
        steps=100,
        optimizer=OptimizerConfig("adamw"),
        mesh=MeshConfig(data=1, fsdp=chips // run.tensor, tensor=run.tensor),
    )


def predict(run: Run, hlo: Path) -> dict[str, Any]:
    """Compiles and reads one run; in a process of its own, since the compiler keeps its memory.

    The compiled program is kept (runs/plan, not in git), so that a change of the predictor need not compile again.
    """
    from smoljax.plan.chips import read_topology
    from smoljax.plan.compile import Compiled, compile_step
    from smoljax.plan.plan import training_report

    planned = config(run)
    if not hlo.exists():
        compile_step(planned, read_topology(run.topology)).save(hlo)
    found = training_report(planned, Compiled.load(hlo))
    return {"run": asdict(run), "plan": found, "machine": machine()}


def row_of(name: str) -> Path:
    """The run's row, made anew; only compiling takes long, and what is compiled is kept."""
    command = [sys.executable, "-m", "experiments.plan.published", "--one", name]
    print("$", *command[1:], file=sys.stderr, flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return RESULTS / f"{name}.json"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: published, predicted, their ratio."""
    lines = [
        "| run | chips | published s | predicted s | ratio | bounds s | memory GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        run, plan = row["run"], row["plan"]
        step = plan["predicted_step_s"]
        if step is None:
            said = "does not fit | – | – "
        else:
            times = plan["predicted_s"]
            bounds = f"{times['overlapped']:.2f}–{times['apart']:.2f}"
            said = f"{step:.2f} | {step / run['seconds']:.2f} | {bounds}"
        lines.append(
            f"| {run['model']}, {run['rows']} × {run['tokens']} a chip | {run['topology']} | {run['seconds']:.2f} "
            f"| {said} | {plan['hbm_bytes_per_chip'] / 2**30:.1f} |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `smoljax plan` prints beside every prediction."""
    pairs = [(row["plan"]["predicted_step_s"], row["run"]["seconds"]) for row in rows]
    ratios = [predicted / published for predicted, published in pairs if predicted is not None]
    if not ratios:
        raise SystemExit("no run whose step could be predicted")
    return {
        "runs": len(ratios),
        "refused": len(pairs) - len(ratios),
        "mean_abs": round(sum(abs(ratio - 1) for ratio in ratios) / len(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="only the table")
    args = parser.parse_args()
    from smoljax.platform import skip_absent_tpu

    skip_absent_tpu()
    if args.one:
        run = RUNS[args.one]
        write_json(RESULTS / f"{args.one}.json", predict(run, COMPILED / kept_name(run.name, config(run))))
        return
    if not args.table:
        for name in args.runs:
            row_of(name)
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    write_json(ROOT / "smoljax" / "plan" / "predictor.json", summary(rows))
    fill(PAGE, "published runs", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
