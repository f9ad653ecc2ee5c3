"""Checksums of checkpoints, beside them: Orbax stores arrays without, and a flipped bit would be read as a weight."""

import contextlib
import json
import re
import shutil
import threading
from pathlib import Path

import jax

from smoljax.convert.checksums import first_difference, sums_of

FOLDER = "checksums"
LOOK_S = 1.0


class Sealer:
    """Seals each checkpoint as soon as it is whole, in a thread of its own; of several hosts, each its own files."""

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seals", daemon=True)

    def start(self) -> None:
        """From now on what becomes whole is sealed."""
        if not self._thread.is_alive():
            self._thread.start()

    def settle(self) -> None:
        """Ends the thread; afterwards all that is whole is sealed. Raises OSError where that cannot be written."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        seal(self._checkpoints)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            with contextlib.suppress(OSError):  # `settle` tries again, and says so
                seal(self._checkpoints)


def seal(checkpoints: Path) -> None:
    """Writes `../checksums/STEP/HOST-of-HOSTS.json` for whole checkpoints without, and drops those of deleted ones."""
    sums, host = checkpoints.parent / FOLDER, jax.process_index()
    sealed = [path for path in sums.glob("*") if path.name.isdigit()]
    whole = {path.name: path for path in checkpoints.glob("*") if path.name.isdigit()}
    for path in sealed:
        if path.name not in whole and host == 0:
            shutil.rmtree(path, ignore_errors=True)
    for step, folder in whole.items():
        told = sums / step / f"{host}-of-{jax.process_count()}.json"
        if told.exists():
            continue
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            own = {path: found for path, found in sums_of(folder).items() if _is_own(path)}
            told.parent.mkdir(parents=True, exist_ok=True)
            scratch = told.with_suffix(".tmp")
            scratch.write_text(json.dumps(own))
            scratch.replace(told)


def damage(checkpoints: Path, step: int) -> str | None:
    """What is wrong with a file of a checkpoint, None where all are as they were sealed; hosts share the reading."""
    for told in sorted((checkpoints.parent / FOLDER / str(step)).glob("*.json")):
        if int(told.name.split("-")[0]) % jax.process_count() != jax.process_index():
            continue
        if wrong := first_difference(checkpoints / str(step), json.loads(told.read_text())):
            return wrong
    return None


def _is_own(path: str) -> bool:
    """Whether this host wrote a file: in a folder of its number, or of nobody's and it is the first.

    Files beside the items are Orbax's notes, which it may still change when the checkpoint is whole.
    """
    if "/" not in path:
        return False
    found = re.search(r"ocdbt\.process_(\d+)/", path)
    return jax.process_index() == (int(found.group(1)) if found else 0)
