"""A contender is a process that holds a model and times what it is told to, one thing at a time.

Parent and contender speak in lines of JSON over pipes: {"do": "decode", …} goes in, {"seconds": …} comes out. While one
works the others wait without turning, so that runs of several can be interleaved.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from smoljax.errors import SmoljaxError

Action = Callable[..., dict[str, Any]]


@dataclass
class Contender:
    """A running process of `python -m MODULE SPEC`.

    Attributes:
      name: how tables call it.
      process: the process.
      log: what it says on standard error, for messages.
    """

    name: str
    process: "subprocess.Popen[str]"
    log: IO[str]

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """One answer; raises SmoljaxError with the last line that the process said where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith('{"answer"'):
                answer: dict[str, Any] = json.loads(line)["answer"]
                if "failed" in answer:
                    raise SmoljaxError(f"{self.name}: {answer['failed']}")
                return answer
        self.log.seek(0)
        said = self.log.read().strip().splitlines() or [f"status {self.process.wait()}"]
        raise SmoljaxError(f"{self.name} ended: {said[-1]}")

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            with contextlib.suppress(
                BrokenPipeError
            ):  # it is gone, and what it was asked last lies here unsent
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()


def start(
    name: str, module: str, spec: Mapping[str, Any], threads: int, env: Mapping[str, str] | None = None
) -> Contender:
    """Starts a contender's process, in this environment and `env`; it loads its model when first asked."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2", **(env or {})},
    )
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it is given cores
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:threads])
    return Contender(name, process, log)


def serve(actions: Mapping[str, Action]) -> None:
    """The contender's side: answers until the parent closes the pipe."""
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = actions[call.pop("do")](**call)
        except Exception as error:
            traceback.print_exc()
            said = str(error).splitlines() or [""]
            answer = {"failed": f"{type(error).__name__}: {said[0]}"}
        print(json.dumps({"answer": answer}), flush=True)
