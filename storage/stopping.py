"""What stops a program from outside, signal or full disk, and how to go on after it."""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from circuitcut.storage.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk or a quota that is full, or of a limit on the size of files."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop by a signal.

    Args:
        number: SIGINT (Ctrl-C) or SIGTERM.
        said: What is saved, if that is known.
        hint: How to go on, if that is known.
    """

    def __init__(self, number: int = signal.SIGINT, said: str = "", hint: str = ""):
        super().__init__("; ".join(part for part in (said, hint) if part))
        self.number, self.said, self.hint = number, said, hint

    @classmethod
    def of(cls, error: KeyboardInterrupt) -> "Stopped":
        """An interruption, as one of this class."""
        return error if isinstance(error, cls) else cls(said=str(error))


class WriteError(UserError):
    """A file could not be written: the disk is full, or the folder is not writable."""


@contextmanager
def said_how_to_go_on(hint: Callable[[], str]) -> Iterator[None]:
    """Add to a `Stopped` or a `WriteError` of the block how to go on after it."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = Stopped.of(error)
        if stopped.hint:
            raise
        raise Stopped(stopped.number, stopped.said, hint()) from error
    except WriteError as error:
        raise WriteError(f"{error}; then {hint()}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise WriteError(f"{full(error)}; then {hint()}") from error


def full(error: OSError) -> str:
    """What to do about an error in `FULL`."""
    where = f" {error.filename}" if error.filename else ""
    advice = "raise the limit (ulimit -f)"
    if error.errno != errno.EFBIG:
        advice = "free some disk space"
    return f"cannot write{where}: {error.strerror}; {advice}"
