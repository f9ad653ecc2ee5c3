"""Folders that appear whole or not at all."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smoljax.errors import SmoljaxError


@contextmanager
def write_aside(destination: Path) -> Iterator[Path]:
    """A scratch folder beside `destination` that is renamed onto it when the block ends well.

    A block that fails removes the scratch folder; a process that is killed leaves it under a name of its
    own (`.NAME.smoljax-HOST-PID`), which nothing reads and the next run for the same destination removes.

    Raises:
      SmoljaxError: the destination is a file or a folder with something in it.
    """
    destination = Path(os.path.abspath(destination))
    check_free(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(destination)
    scratch = destination.parent / f"{_prefix(destination)}{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        check_free(destination)
        os.replace(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(destination: Path) -> None:
    """Raises SmoljaxError where writing to `destination` would overwrite something."""
    if destination.is_symlink() or destination.is_file():
        raise SmoljaxError(f"{destination}: exists and is no folder; choose another destination")
    if destination.is_dir() and any(destination.iterdir()):
        raise SmoljaxError(
            f"{destination}: is not empty, and nothing is overwritten; choose another destination"
        )


def _prefix(destination: Path) -> str:
    return f".{destination.name}.smoljax-{socket.gethostname()}-"


def _remove_stale(destination: Path) -> None:
    """Removes scratch folders of processes of this host that are gone."""
    prefix = _prefix(destination)
    for path in destination.parent.iterdir():
        pid = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
