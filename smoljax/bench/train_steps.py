"""What both sides of the training figures share: AdamW's settings and the clock."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from smoljax.bench.memory import peak_bytes

LR, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0


def timed_steps(step: Callable[[], float], count: int) -> dict[str, Any]:
    """Runs `step`, which returns the loss when its work is done, `count` times.

    Returns:
      `seconds`: the median step, the first left out as it warms up; `all_s` and `losses` of each; `bytes` and
      `bytes_before`: the process's peak behind the steps and before them.
    """
    before = peak_bytes()
    seconds: list[float] = []
    losses: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds[1:] or seconds),
        "all_s": seconds,
        "losses": losses,
        "bytes": peak_bytes(),
        "bytes_before": before,
    }
