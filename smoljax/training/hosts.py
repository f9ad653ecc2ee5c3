"""Several hosts as one run: how they find each other, how each learns that another is gone, how they stop together.

Every host runs the same command. `jax.distributed` connects them; host 0 keeps a small table of strings that all write
to and read from, on which this module beats and listens. A collective of which a member is gone would wait for ever, so
a thread of every host ends the process instead, with one line that says why, within `patience_s`. Where host 0
itself is gone, jax's client aborts the others before that, with a text of its own. A collective may also hang though
all its members live (jax-ml/jax#38503); so a run that gets no further for `stall_s` ends likewise.
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from smoljax.errors import SmoljaxError, UsageError

BEAT_S = 1.0
_RUNS = itertools.count()  # a process may train several times; all hosts count alike
# Troubles of a host's own, which the error of a broken collective never names.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "Mosaic")


@dataclass(frozen=True)
class HostsConfig:
    """How a host finds the others.

    Attributes:
      coordinator: HOST:PORT of host 0, the same for all; "auto" where the cluster says it itself (Cloud TPU, GKE,
        SLURM, Open MPI).
      count: how many hosts there are; None with "auto".
      index: which one this is, from 0; None with "auto".
      start_s: seconds that the hosts wait for each other at the start.
      patience_s: seconds without a sign of life after which a host counts as gone.
      stall_s: seconds without a step after which the run counts as hung, from its second step on.
    """

    coordinator: str
    count: int | None = None
    index: int | None = None
    start_s: int = 300
    patience_s: int = 30
    stall_s: int = 600

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be."""
        if self.coordinator == "auto":
            if self.count is not None or self.index is not None:
                raise UsageError("--coordinator auto: the cluster tells hosts and host; leave both out")
            return
        if ":" not in self.coordinator:
            raise UsageError(f"coordinator {self.coordinator!r}: write HOST:PORT of host 0, or auto")
        if self.count is None or self.index is None:
            raise UsageError(
                f"coordinator {self.coordinator}: say how many --hosts there are, and which --host this is"
            )
        if not 0 <= self.index < self.count:
            raise UsageError(f"host {self.index} of {self.count}: hosts count from 0 to {self.count - 1}")
        if min(self.start_s, self.patience_s, self.stall_s) < 1:
            raise UsageError("start, patience and stall must be at least 1 second")


def join(config: HostsConfig) -> None:
    """Waits for all hosts and becomes one of them; must run before jax is first used.

    Where they do not all come in time the process ends with status 1 and one line: jax cannot be stopped there, and
    would abort it with a page of text.

    Raises:
      SmoljaxError: jax was in use, or knows no cluster here.
    """
    # A host that is gone is this module's to report: jax would abort the others with a page of text.
    jax.config.update("jax_enable_recoverability", True)
    if jax.config.jax_platforms == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # A program that comes from the compilation cache has lost the order of its collectives (XLA's CPU backend,
        # jaxlib 0.10.2): devices run them each in an order of its own, and the hosts wait for each other for ever.
        jax.config.update("jax_enable_compilation_cache", False)
    auto = config.coordinator == "auto"
    given = {} if auto else {
        "coordinator_address": config.coordinator, "num_processes": config.count, "process_id": config.index
    }  # fmt: skip
    who = "this host" if auto else f"host {config.index} of {config.count}"
    why = (
        f"{who} waited {config.start_s} s, and not all hosts met at {config.coordinator}; look whether all were "
        "started with the same address and number of hosts, and whether the port is open"
    )
    late = threading.Timer(config.start_s, _leave, (why,))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=config.start_s + 60,
            heartbeat_timeout_seconds=max(100, 3 * config.patience_s),
        )
    except RuntimeError as error:
        raise SmoljaxError(f"{who} cannot join: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise SmoljaxError(
            f"{who} cannot join: {str(error).splitlines()[0]}; without a known cluster give --coordinator HOST:PORT, "
            "--hosts and --host"
        ) from error
    finally:
        late.cancel()


def _table() -> Any:
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()


@contextmanager
def watched(
    config: HostsConfig | None, last_checkpoint: Callable[[], int | None]
) -> Iterator[Callable[[bool], None]]:
    """While inside, this host beats, and the process ends with status 1 where another one fails or falls silent.

    An exception inside is told to the others before it goes on. Nothing happens in a run of one process.

    Args:
      config: how long to wait; None for the defaults.
      last_checkpoint: the step to go on from, for the message.

    Yields:
      What to call whenever the run got further: with True where it must do so again within `stall_s`, with False where
      what follows may take its time.
    """
    if jax.process_count() == 1:
        yield lambda goes_on: None
        return
    patience_s = HostsConfig.patience_s if config is None else config.patience_s
    watch = _Watch(patience_s, HostsConfig.stall_s if config is None else config.stall_s, last_checkpoint)
    watch.start()
    try:
        yield watch.moved
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not any(text in str(error) for text in _OWN):
            watch.wait_for_reasons()
            watch.end(f"a collective broke off, so another host is gone ({_short(error)})")
        watch.tell_failure(_short(error))
        watch.end_later(str(error))
        raise
    watch.finish()


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class _Watch:
    def __init__(self, patience_s: float, stall_s: float, last_checkpoint: Callable[[], int | None]) -> None:
        self._patience, self._stall, self._last = patience_s, stall_s, last_checkpoint
        self._moved: float | None = None  # when the run last got further; None while it may take its time
        self._table, self._me, self._count = _table(), jax.process_index(), jax.process_count()
        run = f"smoljax/{next(_RUNS)}"
        self._beats, self._failed, self._done = f"{run}/beat/", f"{run}/failed/", f"{run}/done/"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
        # A host that never beats falls silent too.
        self._heard = dict.fromkeys(range(self._count), ("", time.monotonic()))

    def start(self) -> None:
        self._thread.start()

    def moved(self, goes_on: bool) -> None:
        self._moved = time.monotonic() if goes_on else None

    def end_later(self, why: str) -> None:
        """Bounds what an exception still does on its way out: closing checkpoints waits for hosts that have ended."""
        timer = threading.Timer(self._patience, _leave, (why,))
        timer.daemon = True
        timer.start()

    def wait_for_reasons(self) -> None:
        """Gives a host that failed the time to say so, which ends this process: its reason is the better one."""
        time.sleep(2 * BEAT_S)

    def tell_failure(self, text: str) -> None:
        self._over.set()
        try:
            self._table.key_value_set(f"{self._failed}{self._me}", text, allow_overwrite=True)
            time.sleep(2 * BEAT_S if self._me == 0 else 0)  # host 0 keeps the table: the others read it first
        except Exception:  # the table is gone with its host
            return

    def finish(self) -> None:
        """Waits until all have come this far; whoever is first must not be taken for gone."""
        self._table.key_value_set(f"{self._done}{self._me}", "1", allow_overwrite=True)
        while not self._over.is_set() and len(self._table.key_value_dir_get(self._done)) < self._count:
            time.sleep(0.1)
        self._over.set()
        if self._me == 0:
            time.sleep(BEAT_S)  # the others see that all are done before the table goes

    def _run(self) -> None:
        beats = 0
        silent_since: float | None = None
        while not self._over.wait(BEAT_S):
            beats += 1
            moved = self._moved
            if moved is not None and time.monotonic() - moved > self._stall:
                self.end(
                    f"no step for {self._stall:g} s, though all {self._count} hosts live: a collective hangs, or the "
                    "data or the run's folder does not answer"
                )
            try:
                self._table.key_value_set(f"{self._beats}{self._me}", str(beats), allow_overwrite=True)
                self._listen()
                silent_since = None
            except Exception as error:
                silent_since = silent_since or time.monotonic()
                if self._over.is_set():
                    return
                if time.monotonic() - silent_since > min(self._patience, 10):
                    self.end(
                        f"host 0, which keeps the hosts together, is gone ({str(error).splitlines()[0][:120]})"
                    )

    def _listen(self) -> None:
        now = time.monotonic()
        for key, text in self._table.key_value_dir_get(self._failed):
            self.end(f"host {key.rsplit('/', 1)[1]} failed: {text}")
        for key, beat in self._table.key_value_dir_get(self._beats):
            host = int(key.rsplit("/", 1)[1])
            if host not in self._heard or self._heard[host][0] != beat:
                self._heard[host] = (beat, now)
        done = {int(key.rsplit("/", 1)[1]) for key, _ in self._table.key_value_dir_get(self._done)}
        for host, (_, when) in self._heard.items():
            if host not in done and host != self._me and now - when > self._patience:
                self.end(f"host {host} of {self._count} has given no sign of life for {self._patience:g} s")

    def message(self, why: str) -> str:
        """The one line that a host stops with."""
        step = self._last()
        go_on = (
            "there is no checkpoint yet" if step is None else f"the last whole checkpoint is of step {step}"
        )
        return f"host {self._me} stops: {why}; {go_on}; start all hosts again to go on"

    def end(self, why: str) -> None:
        """Ends the process, from any thread."""
        if self._over.is_set():
            return
        _leave(self.message(why))


def _leave(why: str) -> None:
    """Ends the process, whatever the main thread waits for: a collective without all its members never ends."""
    print(f"smoljax: error: {why}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
