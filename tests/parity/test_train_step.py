"""Training steps against torch + transformers: the benchmark's own comparison, at a size that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings", [(), ("--scan", "--remat", "dots", "--host-devices", "2", "--fsdp", "2")]
)
def test_losses_of_four_adamw_steps_are_those_of_torch(settings):
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"needs {module}; install with `make reference`")
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.train_step",
        "--geometry",
        "tiny",
        "--words",
        "20",
    ]
    command += ["--runs", "1", "--json", *settings]
    root = Path(__file__).parent.parent.parent
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    losses = result["smoljax"]["losses"]
    assert result["largest_loss_difference"] <= 1e-5
    assert losses[0] - losses[-1] > 0.1  # the updates did something, so equal losses mean equal updates
