"""llama.cpp as a contender, by xllamacpp: `python -m smoljax.bench.llama '{"model": F.gguf, "threads": 2}'`."""

import importlib
import json
import os
import sys
from functools import cached_property
from typing import Any

from smoljax.bench.contender import serve
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import text_prompt


class Llama:
    """The actions, timed by llama.cpp's own clocks: without its queue and its JSON."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    @cached_property
    def server(self) -> Any:
        """A server in this process with one slot."""
        xllamacpp: Any = importlib.import_module("xllamacpp")
        given = xllamacpp.CommonParams()
        given.model.path = self.spec["model"]
        given.n_ctx = 2048
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = self.spec["threads"]
        given.n_parallel = 1
        given.verbosity = -1
        return xllamacpp.Server(given)

    def _complete(self, prompt: int, new: int) -> dict[str, Any]:
        asked = {
            "prompt": text_prompt(prompt)["input_ids"][0].tolist(),
            "max_tokens": new,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        found = self.server.handle_completions(asked)
        return json.loads(found) if isinstance(found, str) else found

    def decode(self, prompt: int, new: int, rows: int = 1) -> dict[str, Any]:
        """Seconds a step behind `prompt` tokens."""
        if rows != 1:
            raise ValueError("one row only")
        timings = self._complete(prompt, new + 1)["timings"]
        return {"seconds": timings["predicted_ms"] / timings["predicted_n"] / 1000}

    def prefill(self, prompt: int) -> dict[str, Any]:
        """Seconds to read `prompt` tokens."""
        timings = self._complete(prompt, 1)["timings"]
        if timings["prompt_n"] < prompt:
            raise ValueError(f"llama.cpp read {timings['prompt_n']} of {prompt} tokens")
        return {"seconds": timings["prompt_ms"] / 1000}

    def peak(self) -> dict[str, Any]:
        """Most memory so far."""
        return {"bytes": peak_bytes()}


def main() -> None:
    """Serves until the parent closes the pipe."""
    # llama.cpp prints to standard output too; answers go where the parent listens.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llama = Llama(json.loads(sys.argv[1]))
    serve({name: getattr(llama, name) for name in ("decode", "prefill", "peak")})
    sys.stdout.flush()
    os._exit(0)  # its threads would keep the process


if __name__ == "__main__":
    main()
