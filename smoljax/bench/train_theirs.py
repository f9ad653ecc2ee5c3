"""transformers as a contender in training: `python -m smoljax.bench.train_theirs SPEC`.

SPEC as JSON: model, threads, and "fused": true for torch's fused AdamW in place of its default.
"""

import json
import sys
from typing import Any

from smoljax.bench.contender import serve
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import training_batch
from smoljax.bench.train_steps import CLIP, LR, WEIGHT_DECAY, timed_steps


class TrainTheirs:
    """The actions, by the calls that a user of transformers makes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def step(self, rows: int, words: int, steps: int) -> dict[str, Any]:
        """Seconds and losses of `steps` steps on one batch, float32, AdamW; the model is loaded first."""
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(self.spec["threads"])
        loaded = AutoModelForImageTextToText.from_pretrained(self.spec["model"], dtype=torch.float32)
        model: Any = loaded.train()
        named = list(model.named_parameters())
        # The matrices that smoljax decays too: no norms, no biases, no position table.
        matrix = {name for name, leaf in named if leaf.ndim >= 2 and "position_embedding" not in name}
        groups = [
            {"params": [leaf for name, leaf in named if name in matrix], "weight_decay": WEIGHT_DECAY},
            {"params": [leaf for name, leaf in named if name not in matrix], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, LR, fused=self.spec.get("fused") or None)
        vision = model.config.vision_config
        seats = (vision.image_size // vision.patch_size // model.config.scale_factor) ** 2
        arrays = training_batch(rows, words, seats, model.config.image_token_id, vision.image_size)
        ids = torch.from_numpy(arrays["input_ids"]).long()
        batch = {
            "input_ids": ids,
            "pixel_values": torch.from_numpy(arrays["pixel_values"]),
            "labels": ids.masked_fill(~torch.from_numpy(arrays["loss_mask"]), -100),
        }

        def one() -> float:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return timed_steps(one, steps)

    def peak(self) -> dict[str, Any]:
        """Most memory so far."""
        return {"bytes": peak_bytes()}


def main() -> None:
    """Serves until the parent closes the pipe."""
    theirs = TrainTheirs(json.loads(sys.argv[1]))
    serve({"step": theirs.step, "peak": theirs.peak})


if __name__ == "__main__":
    main()
