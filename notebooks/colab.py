# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A training run on Colab that outlives its machine
#
# Colab lends a TPU or a GPU and takes it back when it likes. A smoljax run does not mind, as long as its folder lies
# somewhere that stays: the same call goes on from the last whole checkpoint, with the losses of a run that nobody
# disturbed. This notebook
#
# 1. installs smoljax for the accelerator that the machine has, and mounts Google Drive,
# 2. starts a small run in a folder on the Drive, and breaks off in the middle,
# 3. goes on, and compares with a run that was never broken off.
#
# Elsewhere than on Colab it runs as it stands, on what is there (two minutes on a laptop's CPU).

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = ""  # on Colab: where this repository is cloned from, "https://…/smoljax.git"
on_colab = "COLAB_RELEASE_TAG" in os.environ

if on_colab and not Path("smoljax").is_dir():
    extra = "tpu" if Path("/dev/vfio").exists() or Path("/dev/accel0").exists() else "cuda"
    subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, "smoljax"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", f"smoljax[data,{extra}]"], check=True)
if on_colab:
    from google.colab import drive  # pyright: ignore[reportMissingImports]

    drive.mount("/content/drive")
    sys.path.insert(0, "smoljax")  # what was installed a moment ago
    runs = Path("/content/drive/MyDrive/smoljax-runs")
else:
    runs = Path(tempfile.mkdtemp())

# %%
import jax

import smoljax
from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.training.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)
from smoljax.training.run import train

print(f"{jax.device_count()} {jax.default_backend()} device(s)")

# %% [markdown]
# ## The run
#
# `data=-1` gives each device its share of the batch, one or eight; on an accelerator products are bfloat16 while
# parameters stay float32. A checkpoint every 20 steps is what a lost machine can cost at most.

# %%
processor = str(Path(smoljax.__file__).parents[1] / "experiments/scenes/processor")
config = TrainConfig(
    name="colab",
    model=ModelConfig(
        presets.smolvlm_nano(vision_width=64, text_width=64, vision_layers=2, text_layers=2),
        processor,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
        scan_layers=True,
    ),
    data=DataConfig(
        (SourceConfig("tfds:scenes/tiny:train", options={"caption": True, "questions": 4}),),
        batch_size=8,
        sequence_length=160,
        loss_on="answers",
        fit=True,
    ),
    objectives=(NextToken(),),
    steps=100,
    optimizer=OptimizerConfig("adamw", lr=1e-3, warmup_steps=10),
    mesh=MeshConfig(data=-1),
    checkpoint=CheckpointConfig(every=20, keep_last=2, keep_best=0),
    log_every=20,
)
broken = train(config, runs / "colab", show=False, stop_after=50)
print(f"{broken.step} steps, finished: {broken.finished}")

# %% [markdown]
# ## Here Colab takes the machine away
#
# Run the notebook again from the top, on another machine if need be: the cell above and this one are the same call.
# (Colab's SIGTERM saves at once; where there was no time, the last whole checkpoint counts.)

# %%
done = train(config, runs / "colab", show=False)
print(f"{done.step} steps, finished: {done.finished}")

# %% [markdown]
# ## What was lost
#
# The same run, never broken off:

# %%
whole = train(config, Path(tempfile.mkdtemp()) / "whole", show=False)
print(f"last loss {done.loss:.6f}, never broken off {whole.loss:.6f}: the same: {done.loss == whole.loss}")

# %% [markdown]
# The model is a folder that every command takes: `smoljax generate -m /content/drive/MyDrive/smoljax-runs/colab/model`.
# For more than a toy change the config: `model=ModelConfig(start="HuggingFaceTB/SmolVLM-256M-Instruct")` and your own
# `.jsonl` file ([docs/training.md](../docs/training.md), [docs/data.md](../docs/data.md)).
