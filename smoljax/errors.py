"""The two ways a call can end badly; the command line turns them into one line and an exit status."""


class SmoljaxError(Exception):
    """The work failed (exit status 1). The message names the file, key or shape at fault and the mend."""

    exit_status = 1


class UsageError(SmoljaxError):
    """The call itself was wrong (exit status 2)."""

    exit_status = 2
