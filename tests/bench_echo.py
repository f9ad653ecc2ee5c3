"""A contender for tests: `python -m tests.bench_echo '{"seconds": 0.5}'`."""

import json
import sys

from smoljax.bench.contender import serve

SPEC = json.loads(sys.argv[1])


def decode(**what):
    print("something that a library says on standard output")
    if what.get("prompt") == 666:
        raise ValueError("no such prompt\nand more")
    if what.get("prompt") == 13:
        sys.exit("smoljax: gone")
    return {"seconds": SPEC["seconds"], "ids": [1, what["new"]]}


def step(**what):
    return {"seconds": SPEC["seconds"], "losses": [11.0, 10.0 + SPEC["apart"]]}


LIMITS = {"gflops": 1.0, "gb_s": 1.0}
serve(
    {
        "decode": decode,
        "step": step,
        "limits": lambda: LIMITS,
        "peak": lambda: {"bytes": SPEC["seconds"] * 1e9},
    }
)
