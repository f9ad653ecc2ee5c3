"""Both sides of a step benchmark take the same clock and the same scale."""

import sys
import time
from collections.abc import Callable
from typing import Any

from smoljax.bench.memory import peak_bytes


def timed_steps(step: Callable[[], float], count: int) -> dict[str, Any]:
    """Runs `step`, which returns the loss when its work is done, `count` times.

    Returns:
      `seconds` and `losses` of each step, `peak_bytes` and `peak_before_steps_bytes` of the process.
    """
    before = peak_bytes()
    seconds, losses = [], []
    for _ in range(count):
        started = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - started)
        print(f"{seconds[-1]:.2f} s, loss {losses[-1]:.6f}", file=sys.stderr, flush=True)
    return {
        "seconds": seconds,
        "losses": losses,
        "peak_bytes": peak_bytes(),
        "peak_before_steps_bytes": before,
    }
