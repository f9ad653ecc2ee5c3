"""The transformers side of `train_step`: a process of its own that trains a few steps and prints JSON.

python -m experiments.benchmarks.train_step_torch HF_FOLDER BATCH.npz '{"steps": 4, "fused": true, …}'
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from experiments.benchmarks.steps import timed_steps


def run(folder: Path, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds and loss of each step, and peak memory."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    named = list(model.named_parameters())
    # The matrices that smoljax decays too: no norms, no biases, no position table.
    matrix = {name for name, leaf in named if leaf.ndim >= 2 and "position_embedding" not in name}
    groups = [
        {
            "params": [leaf for name, leaf in named if name in matrix],
            "weight_decay": settings["weight_decay"],
        },
        {"params": [leaf for name, leaf in named if name not in matrix], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings["lr"], fused=settings["fused"] or None)
    ids = torch.from_numpy(arrays["input_ids"]).long()
    batch = {
        "input_ids": ids,
        "pixel_values": torch.from_numpy(arrays["pixel_values"]),
        "labels": ids.masked_fill(~torch.from_numpy(arrays["loss_mask"]), -100),
    }

    def one() -> float:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return timed_steps(one, settings["steps"])


def main() -> None:
    folder, batch, settings = sys.argv[1:]
    print(json.dumps(run(Path(folder), dict(np.load(batch)), json.loads(settings))))


if __name__ == "__main__":
    main()
