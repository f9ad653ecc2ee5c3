"""Calling a command as a user does, in this process."""

import contextlib
import io

import pytest

from smoljax.cli import main as cli


def call(*args):
    """(exit status, standard output, standard error) of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    return stop.value.code, out.getvalue(), err.getvalue()
