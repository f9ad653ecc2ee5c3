"""One training run from its config to its last checkpoint, and on again from where it was stopped."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.hf import json_bytes
from smoljax.convert.hf_config import to_hf_config
from smoljax.convert.native import save_native
from smoljax.data.config import DataConfig
from smoljax.data.pipeline import make_iterator
from smoljax.errors import SmoljaxError
from smoljax.ops.partition import Partition
from smoljax.training.checkpoints import Checkpoints, last_whole
from smoljax.training.config import TrainConfig
from smoljax.training.config_file import check_same, write_resolved
from smoljax.training.flops import matmul_peak, train_flops
from smoljax.training.hosts import HostsConfig, join, watched
from smoljax.training.logs import Bar, MetricsFile, last_logged
from smoljax.training.objectives.table import PAIRS, needs_decoder
from smoljax.training.optimizer import schedule
from smoljax.training.setup import Start, export_params, make_state, open_model, open_teacher, replicated
from smoljax.training.sharding import batch_sharding, check_hosts, make_mesh, place_batch, rules_of
from smoljax.training.step import TrainState, jit_step, make_validation

MODEL = "model"
NO_PAIRS = 20  # batches without a contrastive pair that stop a run which wants them


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
      step: steps done in all.
      loss: of the last of them that was logged; NaN where none was.
      workdir: of the run.
      finished: False where it was stopped before its last step.
      model: the exported model, None where the run has not finished.
    """

    step: int
    loss: float
    workdir: Path
    finished: bool
    model: Path | None


def use_host_devices(config: TrainConfig) -> None:
    """Splits the CPU into `mesh.host_devices` devices; must run before jax is first used.

    Raises:
      SmoljaxError: jax was in use already, with another number.
    """
    count = config.mesh.host_devices
    if count is None or jax.config.jax_platforms not in (None, "", "cpu"):  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.devices("cpu")) != count:
            raise SmoljaxError(
                f"mesh.host_devices is {count}, but jax already runs with {len(jax.devices('cpu'))}; "
                "start the run in a process of its own"
            ) from error


def train(
    config: TrainConfig,
    workdir: str | Path,
    *,
    show: bool = True,
    stop_after: int | None = None,
    hosts: HostsConfig | None = None,
) -> Result:
    """Trains, or goes on where the folder's run stopped.

    Args:
      config: the run.
      workdir: its folder: resolved config, metrics, TensorBoard events, checkpoints, and at the end `model/`.
      show: progress on standard error.
      stop_after: save and stop after this many steps in all, as SIGTERM would.
      hosts: how this host finds the others of the run; `workdir` is then a folder that all of them see. None: it is
        the only one (or `jax.distributed.initialize` was called already).

    Returns:
      See `Result`.

    Raises:
      UsageError: the folder holds another run; mesh and batch do not fit.
      SmoljaxError: broken data or checkpoints; a loss that is no number, or that keeps rising. The last
        checkpoint is then whole and from before.
    """
    use_host_devices(config)
    if hosts is not None:
        join(hosts)
    workdir = Path(workdir)
    checkpoints = None
    try:
        with watched(hosts, lambda: last_whole(workdir)) as moved:
            check_same(config, workdir)
            partition = rules_of(config.mesh).partition(make_mesh(config.mesh))
            check_hosts(partition)
            checkpoints = Checkpoints(workdir, config.checkpoint)
            run = _Run(config, workdir, partition, checkpoints, show and jax.process_index() == 0, moved)
            if jax.process_index() == 0:
                write_resolved(config, workdir)
            return run.go(stop_after)
    finally:
        if checkpoints is not None:
            checkpoints.close()


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        partition: Partition,
        checkpoints: Checkpoints,
        show: bool,
        moved: Callable[[bool], None],
    ) -> None:
        self.config, self.workdir = config, workdir
        self.checkpoints, self.show, self.moved = checkpoints, show, moved
        start = open_model(config.model, weights=checkpoints.latest is None, seed=config.seed)
        self.start = replace(start, params=None)  # the weights it holds are needed for the first state alone
        self.sharding = batch_sharding(partition)
        teacher = open_teacher(config, start)
        taught = None if teacher is None else teacher[0]
        self.taught = None if teacher is None else replicated(partition.mesh, teacher[1])
        optimizer, first, like = make_state(config, start, taught, partition)
        del start  # `first` alone holds the weights now, and lets go of them
        self.data = self._iterator(config.data, config.seed)
        if checkpoints.latest is None:
            self.state: TrainState = first()
        else:
            self.state, position = checkpoints.restore(checkpoints.latest, like)
            self.data.set_state(position)
        self.step_fn = jit_step(config, self.start.config, optimizer, like, taught, partition)
        self.validate_fn = jax.jit(make_validation(config, self.start.config, taught, partition))
        self.rate = schedule(config.optimizer, config.steps)
        self.guard = Guard(config)
        self.last_validation: float | None = None
        self.stop_asked = False  # by a signal to any of several hosts

    def _iterator(self, data: DataConfig, seed: int) -> Any:
        return make_iterator(
            data,
            self.start.processor,
            seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )

    def go(self, stop_after: int | None) -> Result:
        """Steps until the end, a signal, or a loss that cannot be trusted."""
        config, done = self.config, int(self.state.step)
        last = min(config.steps, stop_after or config.steps)
        values: dict[str, float] = {"loss": last_logged(self.workdir, "loss")}
        meter = Meter(config, self.start)
        metrics = MetricsFile(self.workdir, done, write=jax.process_index() == 0)
        several = jax.process_count() > 1
        with _stop_signals() as stopped, Bar(config.name, config.steps, done, self.show) as bar:
            self._announce(bar, done)
            try:
                waiting: tuple[int, Any] | None = None
                while done < last and not (self.stop_asked if several else stopped.is_set()):
                    batch = next(self.data)
                    meter.add(batch)
                    if several:  # all hosts must stop behind the same step, so the question goes through one
                        batch = batch | {"stop": np.full(len(batch["input_ids"]), stopped.is_set(), np.int32)}
                    self.state, found = self.step_fn(
                        self.state, place_batch(batch, self.sharding), self.taught
                    )
                    done += 1
                    # One step's measures are read while the next one runs.
                    if waiting is not None:
                        values = self.checked(*waiting)
                    waiting = (done, found)
                    logs = done % config.log_every == 0 or done == last
                    validates = config.validation and (
                        done % config.validate_every == 0 or done == config.steps
                    )
                    saves = done % config.checkpoint.every == 0 and done < last
                    if not (logs or validates or saves):
                        continue
                    values, waiting = self.checked(*waiting), None
                    if logs:
                        speed = meter.read()
                        rate = float(self.rate(done - 1)) * config.optimizer.lr
                        metrics.write(done, {**values, "lr": rate, **speed})
                        bar.update(done, {"loss": values["loss"], **_for_bar(speed)})
                    if validates:
                        measured = self.validate()
                        metrics.write(done, measured, "validation")
                        bar.say(
                            f"step {done}: validation "
                            + "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
                        )
                        meter.restart()
                    if saves:
                        self.save(done)
                if waiting is not None:
                    values = self.checked(*waiting)
                self.moved(False)
                self.save(done)
                self.checkpoints.wait()
            finally:
                metrics.close()
        if skipped := self.data.skipped():
            bar.say(f"records skipped: {skipped}")
        finished = done >= config.steps
        model = self.export() if finished else None
        return Result(done, values["loss"], self.workdir, finished, model)

    def _announce(self, bar: Bar, done: int) -> None:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        bar.say(
            f"{self.config.name}: {count:,} parameters on {jax.device_count()} "
            f"{jax.devices()[0].platform} device(s), {self.config.steps} steps of {self.config.data.batch_size} rows"
            + (f", going on from step {done}" if done else "")
        )

    def checked(self, step: int, found: Mapping[str, jax.Array]) -> dict[str, float]:
        """A step's measures as numbers; raises SmoljaxError where the run must stop."""
        values = {name: float(value) for name, value in found.items()}
        self.moved(True)
        self.stop_asked |= values.pop("stop", 0.0) > 0
        self.guard.check(step, values)
        return values

    @property
    def weights(self) -> Any:
        """What is evaluated and exported: the moving average where there is one."""
        return self.state.params if self.state.ema is None else self.state.ema

    def validate(self) -> dict[str, float]:
        """Measures over the first `validation_batches` batches of the validation data, the same every time."""
        assert self.config.validation is not None
        data = self._iterator(self.config.validation, 0)
        sums: dict[str, tuple[float, float]] = {}
        for _ in range(self.config.validation_batches):
            found = self.validate_fn(self.weights, place_batch(next(data), self.sharding), self.taught)
            for name, (total, number) in found.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + float(total), before[1] + float(number))
            self.moved(True)
        means = {name: total / max(number, 1e-9) for name, (total, number) in sums.items()}
        weights = {f"loss_{objective.name}": objective.weight for objective in self.config.objectives}
        self.last_validation = sum(weight * means[name] for name, weight in weights.items())
        return {"loss": self.last_validation, **means}

    def save(self, step: int) -> None:
        """Checkpoints state and data position; the copy to the host happens here, the writing behind."""
        position = self.data.get_state()
        self.checkpoints.save(step, self.state, position, self.last_validation)
        self.last_validation = None  # it is this step's, and no later one's

    def export(self) -> Path:
        """Writes `workdir/model`, a native checkpoint that every command takes."""
        folder = self.workdir / MODEL
        if (folder / "smoljax.json").exists():
            return folder
        config = self.start.config.with_compute(dtype="float32", scan_layers=False, remat="none")
        files = dict(self.start.processor.files)
        files.pop("config.json", None)
        if config.sharing.released:
            files["config.json"] = json_bytes(to_hf_config(config, dtype="float32"))
        params = export_params(self.weights)  # every host has a part
        if jax.process_index() == 0:
            source = f"smoljax train, run {self.config.name}"
            save_native(Checkpoint(config, params, files, source=source), folder)
        return folder


class Guard:
    """Stops a run whose loss is no number, or stays far above its running mean."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.guard
        self._mean: float | None = None
        self._high = self._checked = 0
        self._pairs = 0.0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a step's measures; raises SmoljaxError where the run must stop."""
        loss, norm = values["loss"], values["grad_norm"]
        self._pairs = max(self._pairs, values.get(PAIRS, 1.0))
        self._checked += 1
        if not self._pairs and self._checked == NO_PAIRS:
            raise SmoljaxError(
                f"the contrastive objective met no pair in {NO_PAIRS} batches; give a source the option "
                '"contrastive": True, or leave the objective out'
            )
        advice = "the last checkpoint is intact; try a lower learning rate, or look at the data of this step"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise SmoljaxError(f"step {step}: loss {loss}, gradient norm {norm}: not a number; {advice}")
        if self._mean is None:
            self._mean = loss
        if self._config.patience and loss > self._config.spike * max(self._mean, 1e-3):
            self._high += 1
            if self._high >= self._config.patience:
                raise SmoljaxError(
                    f"step {step}: loss {loss:.4g} has been above {self._config.spike:g} times its running mean "
                    f"{self._mean:.4g} for {self._high} steps; {advice}"
                )
            return
        self._high = 0
        self._mean += 0.02 * (loss - self._mean)


class Meter:
    """Tokens, images and model FLOPs a second since the last reading."""

    def __init__(self, config: TrainConfig, start: Start) -> None:
        self._config, self._model = config, start.config
        self._peak = matmul_peak(config.model.dtype) * jax.process_count()
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted: time spent elsewhere must not count."""
        self._started = time.perf_counter()
        self._tokens = self._images = 0
        self._flops = 0.0

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts this host's batch."""
        rows, tokens = batch["input_ids"].shape
        real = batch.get("tile_mask", np.zeros((rows, 0), bool))  # a text-only model's batches have none
        tiles = real.shape[1]
        self._tokens += int((batch["segment_ids"] > 0).sum())
        self._images += int(real.sum())
        decoder = needs_decoder(self._config.objectives)
        self._flops += train_flops(self._model, rows, tokens, tiles, decoder)

    def read(self) -> dict[str, float]:
        """tokens_per_s (real ones), images_per_s (real tiles) and mfu of all hosts; starts anew."""
        seconds = time.perf_counter() - self._started
        hosts = jax.process_count()
        found = {
            "tokens_per_s": round(hosts * self._tokens / seconds, 1),
            "images_per_s": round(hosts * self._images / seconds, 2),
            "mfu": round(hosts * self._flops / seconds / self._peak, 4),
        }
        self.restart()
        return found


def _for_bar(speed: Mapping[str, float]) -> dict[str, float]:
    return {"tok/s": speed["tokens_per_s"], "img/s": speed["images_per_s"], "MFU %": 100 * speed["mfu"]}


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or a first Ctrl-C sets; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
