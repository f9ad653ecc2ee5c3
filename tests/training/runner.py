"""A training run in a process of its own: `python runner.py FOLDER WORKDIR DEVICES [kill=STEP] [key=value …]`.

With kill=STEP the process is killed by SIGKILL right after that step's batch was made; with hosts=PORT,COUNT,INDEX it
is one of several hosts on this machine, of which the last with hang=STEP lives on there but does no more. Programs are
kept where JAX_COMPILATION_CACHE_DIR says, as the commands do.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.models import enable_compilation_cache
from smoljax.training import run
from smoljax.training.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)
from smoljax.training.hosts import HostsConfig
from smoljax.training.overrides import override


def main(folder, workdir, devices, *options):
    data = DataConfig(
        (SourceConfig(f"{folder}/data.jsonl"),),
        batch_size=8,
        sequence_length=96,
        max_tiles=2,
        pack=True,
        split=False,
        loss_on="answers",
    )
    config = TrainConfig(
        "toy",
        ModelConfig(presets.tiny(), f"{folder}/processor", scan_layers=True),
        data,
        (NextToken(),),
        steps=8,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=2, ema=0.5),
        mesh=MeshConfig(host_devices=int(devices)),
        checkpoint=CheckpointConfig(every=2, keep_last=2),
        noise=1.0,
        log_every=1,
    )
    kill = stop = hosts = hang = None
    for option in options:
        key, value = option.split("=")
        if key == "kill":
            kill = int(value)
        elif key == "stop":
            stop = int(value)
        elif key == "hosts":
            port, count, index = map(int, value.split(","))
            hosts = HostsConfig(f"127.0.0.1:{port}", count, index, start_s=120, patience_s=8, stall_s=60)
        elif key == "hang":
            hang = int(value)
        else:
            config = override(config, [option])
    if hang is not None:
        hosts = replace(hosts, stall_s=5)
        hang = hang if hosts.index == hosts.count - 1 else None
    if kill is not None or hang is not None:
        add = run.Meter.add
        seen = []

        def counting(self, batch):
            seen.append(1)
            if kill is not None and len(seen) == kill + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            while hang is not None and len(seen) == hang + 1:
                time.sleep(1)
            add(self, batch)

        run.Meter.add = counting
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        enable_compilation_cache()
    result = run.train(config, Path(workdir), show=False, stop_after=stop, hosts=hosts)
    print(result.step, result.loss)


if __name__ == "__main__":
    main(*sys.argv[1:])
