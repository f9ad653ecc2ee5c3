"""Saving a run so that it goes on exactly: parameters, optimizer, RNG, step and the place in the data."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from smoljax.errors import SmoljaxError
from smoljax.training.config import CheckpointConfig
from smoljax.training.seals import Sealer, damage
from smoljax.training.step import TrainState

FOLDER = "checkpoints"
METRIC = "validation_loss"
# What storage says in the middle of much else.
_CAUSES = (
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
)


def last_whole(workdir: Path) -> int | None:
    """The newest step of which a run's folder holds a whole checkpoint; without asking other hosts."""
    folder = workdir / FOLDER
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


class Checkpoints:
    """Orbax's manager over `workdir/checkpoints`, asynchronous; one folder a step.

    Each holds "state" (the `TrainState`) and "data" (JSON: every host's iterator state). The newest `keep_last`
    and the `keep_best` with the smallest validation loss stay.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=_metric,
                    n=config.keep_best,
                    reverse=True,  # the policy keeps the end of the sorted list
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
        )
        self.folder = (workdir / FOLDER).resolve()
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "data"))
        self._sealer = Sealer(self.folder)

    @property
    def latest(self) -> int | None:
        """The newest step saved, None for a new run."""
        return self.manager.latest_step()

    def save(
        self, step: int, state: TrainState, data: Mapping[str, Any], validation_loss: float | None
    ) -> None:
        """Starts writing; returns when the arrays are copied. A checkpoint appears whole or not at all."""
        if step in self.manager.all_steps():
            return
        self._sealer.start()
        metrics = None if validation_loss is None else {METRIC: validation_loss}
        with self._told(f"write checkpoint {step}"):  # or the one before it, whose writing ends here
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    data=ocp.args.JsonSave(_gathered(data)),  # pyright: ignore[reportCallIssue]
                ),
                metrics=metrics,
            )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """A state placed as `like` is (ShapeDtypeStructs with shardings), and this host's iterator state.

        Raises:
          SmoljaxError: it was saved by another number of hosts, whose data positions cannot be split; it is damaged.
        """
        advice = f"remove {self.folder / str(step)} to go on from the one before"
        with self._told(f"read checkpoint {step}", advice):
            if wrong := damage(self.folder, step):
                raise OSError(wrong)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like),  # pyright: ignore[reportCallIssue]
            data=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
        )
        with self._told(f"read checkpoint {step}", advice):
            found = self.manager.restore(step, args=args)
        states = found["data"]["iterators"]
        if len(states) != jax.process_count():
            raise SmoljaxError(
                f"checkpoint {step} was written by {len(states)} hosts, and this run has {jax.process_count()}; "
                "resume on as many hosts (the number of devices may differ)"
            )
        return found["state"], json.loads(states[jax.process_index()])

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with self._told("write the last checkpoint"):
            self.manager.wait_until_finished()
            self._sealer.settle()

    def close(self) -> None:
        """Waits and lets go."""
        with self._told("write the last checkpoint"):
            self.manager.close()
            self._sealer.settle()

    @contextmanager
    def _told(self, what: str, advice: str = "") -> Iterator[None]:
        """Turns what storage raises into one line; a host that is gone is reported elsewhere."""
        try:
            yield
        except (SmoljaxError, jax.errors.JaxRuntimeError):
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())
            cause = next((words for words in _CAUSES if words.lower() in text.lower()), text[:200])
            whole = last_whole(self.folder.parent)
            kept = (
                "there is no whole checkpoint"
                if whole is None
                else f"the last whole checkpoint is of step {whole}"
            )
            raise SmoljaxError(f"{self.folder}: cannot {what}: {cause}; {advice or kept}") from error


def _metric(metrics: Any) -> float:
    return float(metrics[METRIC]) if metrics and METRIC in metrics else float("inf")


def _gathered(data: Mapping[str, Any]) -> dict[str, Any]:
    """Every host's iterator state, as text."""
    text = json.dumps(data).encode()
    if jax.process_count() == 1:
        return {"iterators": [text.decode()]}
    from jax.experimental import multihost_utils

    size = int(multihost_utils.process_allgather(np.array(len(text))).max())
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(size), np.uint8))
    return {"iterators": [bytes(row).decode().rstrip() for row in rows]}
