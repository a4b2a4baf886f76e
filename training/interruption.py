"""Signals: a loop stops between two steps, all else at once, with one line."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from circuitcut.storage.stopping import FULL, Stopped, remembered

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = "the same command starts again"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_STDERR = 2
"""Number of the file."""
_log = logging.getLogger(__name__)


class StopRequest:
    """Whether a signal has asked a loop to stop, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    def is_set(self) -> bool:
        """Whether there was a signal."""
        return self.number is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that SIGINT and SIGTERM set; the second of them stops at once.

    Outside the main thread, where Python handles no signals, it is never set.

    Raises:
        Stopped: At the end of a block that did not see the request any more.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_set():
            raise Stopped(number)
        request.number = number
        if _log.isEnabledFor(logging.INFO):
            say_at_once("stopping after this step; a second signal stops at once")

    with _handled(handle):
        yield request
    if request.number is not None:
        raise Stopped(request.number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` for SIGINT and SIGTERM while the block runs.

    They are remembered, see `storage.stopping`: one that Python drops leaves no
    traceback. Nor does a thread of another library whose disk is full: the error is
    raised again where the library is called.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        remember(number)
        raise Stopped(number)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        if not (isinstance(error, OSError) and error.errno in FULL):
            before(args)

    def dropped(args: Any) -> None:
        if not isinstance(args.exc_value, Stopped):
            before_drop(args)

    before, threading.excepthook = threading.excepthook, in_thread
    before_drop, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        with remembered() as remember, _handled(handle):
            yield
    finally:
        threading.excepthook, sys.unraisablehook = before, before_drop


def leave_on_signals(name: str) -> Callable[[], None]:
    """Leave with one line on SIGINT and SIGTERM, where nothing is to be cleaned up.

    Args:
        name: Of the program, before the line.

    Returns:
        A function that puts the handlers from before back.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        say_at_once(f"{name}: {_WORDS[signal.Signals(number)]}: {AGAIN}")
        os._exit(exit_status(number))

    return _install(handle)


def say_at_once(line: str) -> None:
    """Write a line from a signal handler.

    The signal may have come while the program was writing to `sys.stderr`, which
    refuses a second write then. That nobody can read the line is no error.
    """
    with suppress(OSError):
        os.write(_STDERR, f"{line}\n".encode(errors="backslashreplace"))


def interruption(
    step: int, checkpoints: Path | None, number: int | None = None
) -> Stopped:
    """The exception that ends a stopped loop and says what is saved."""
    is_saved = "are saved" if checkpoints else "were done, none of them is saved"
    return Stopped(number or signal.SIGINT, f"{step} steps {is_saved}")


def last_words(error: KeyboardInterrupt) -> tuple[int, str]:
    """Exit status and message of a stopped program."""
    stopped = Stopped.of(error)
    hint = "the same command continues" if stopped.said else AGAIN
    parts = [part for part in (stopped.said, stopped.hint or hint) if part]
    word = _WORDS[signal.Signals(stopped.number)]
    return exit_status(stopped.number), f"{word}: {'; '.join(parts)}"


def exit_status(number: int) -> int:
    """130 after SIGINT, 143 after SIGTERM, as the shell has it."""
    return 128 + number


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    restore = _install(handle)
    try:
        yield
    finally:
        restore()


def _install(handle: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handle) for number in SIGNALS
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
