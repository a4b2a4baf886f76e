"""Stopping a loop between two steps, the only place where its state is consistent."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from circuitcut.storage.run_directory import run_holding

_log = logging.getLogger(__name__)


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second of them interrupts at once.

    Outside the main thread, where Python handles no signals, it is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        _log.info("stopping after this step; a second signal stops at once")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def interruption(step: int, checkpoints: Path | None) -> KeyboardInterrupt:
    """The exception that ends a stopped loop and says how to continue."""
    if checkpoints is None:
        return KeyboardInterrupt(f"{step} steps were done, none of them is saved")
    run = run_holding(checkpoints)
    if run is None:
        return KeyboardInterrupt(f"{step} steps are saved; the same command continues")
    return KeyboardInterrupt(f"{step} steps are saved; continue with --resume {run}")
