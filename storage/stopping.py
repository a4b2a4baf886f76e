"""What stops a program from outside, signal or full disk, and how to go on after it.

An exception that a signal raises may be lost: Python drops those of `__del__` and of
callbacks, and other libraries catch any. The signal is remembered therefore, and
`raise_if_stopped` raises it again where the program is at a safe point.
"""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from circuitcut.storage.errors import UserError

FULL = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of the disk quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
"""Numbers of errors of a full disk, quota or file, and what to do."""


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


_heard: list[int] = []
"""The signals that the program was sent while `remembered` held."""


@contextmanager
def remembered() -> Iterator[Callable[[int], None]]:
    """Signals count while the block runs; those that were lost are raised at its end.

    Yields:
        A function for a handler: it remembers the signal of this number.

    Raises:
        Stopped: At the end of a block that a signal should have ended.
    """
    _heard.clear()
    try:
        yield _heard.append
        if _heard:
            raise Stopped(_heard[0], hint="all work was done before it took effect")
    finally:
        _heard.clear()


def raise_if_stopped() -> None:
    """A safe point, for instance between two steps of a loop.

    Raises:
        Stopped: If there was a signal, whose exception was lost.
    """
    if _heard:
        raise Stopped(_heard[0])


class WriteError(UserError):
    """A file could not be written: the disk is full, or the folder is not writable."""


@contextmanager
def said_how_to_go_on(folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Add to a `Stopped` or a `WriteError` of the block how to go on after it.

    Args:
        folder: What is being written, where an error does not say it.
        hint: The last part of the message.
    """
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
        raise WriteError(f"{full(error, folder)}; then {hint()}") from error


def full(error: OSError, folder: Path | None = None) -> str:
    """What to do about an error whose number is in `FULL`."""
    where = error.filename or folder
    what = "cannot write" if where is None else f"cannot write {where}"
    return f"{what}: {error.strerror}; {FULL[error.errno or 0]}"
