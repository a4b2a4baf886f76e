"""How far a loop has come: a bar on a terminal, a few log lines elsewhere.

Whatever lasts longer than five seconds shows a sign of life, with the time left; what
is shorter says nothing until its end. Many short loops one after the other count as one
long one.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from circuitcut.storage.stopping import raise_if_stopped

FIRST = 5.0
"""Seconds until the first line of a loop."""
LAST = 60.0
"""Seconds between two lines at most; each interval is twice the one before."""
WAIT = 3.0
"""Seconds until the first line of a step that is not counted."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _Silence:
    """When the last line of any loop was, and when the next one is due."""

    def __init__(self) -> None:
        self.since = self.moved = float("-inf")
        self.label: str | None = None
        self.pause = FIRST

    def begin(self, now: float) -> None:
        """A loop begins: what was silent before is forgotten, unless it was a loop."""
        if now - self.moved > FIRST:
            self.since, self.label = now, None
        self.moved = now

    def is_due(self, label: str, now: float) -> bool:
        """Whether a step of `label`, done now, is worth a line."""
        self.moved = now
        pause = self.pause if label == self.label else FIRST
        return now - self.since >= pause

    def broken(self, label: str, now: float) -> None:
        """A line is written; the next one of this label comes later."""
        self.pause = min(2 * self.pause, LAST) if label == self.label else 2 * FIRST
        self.since, self.label = now, label


_silence = _Silence()


class Progress:
    """A context manager that shows the steps of one loop.

    The end of each is a safe point of `storage.stopping`.

    Args:
        label: Stands before the numbers; None shows nothing.
        start: Steps done before.
        n_steps: Steps of the whole loop; None: unknown.
        unit: Name of a step.
        summary: Write a line at the end as well, however short the loop.
    """

    def __init__(
        self,
        label: str | None,
        start: int,
        n_steps: int | None,
        *,
        unit: str = "step",
        summary: bool = True,
    ):
        self._bar = tqdm(
            desc=label,
            initial=start,
            total=n_steps,
            disable=True if label is None else None,  # None: unless on a terminal
            dynamic_ncols=True,
            unit=unit,
            delay=0.0 if summary else FIRST,
            leave=summary,
        )
        self._label, self._unit, self._summary = label, unit, summary
        self._start, self._n_steps = start, n_steps
        self._began = time.monotonic()
        _silence.begin(self._began)

    def advance(self, step: int, loss: float | None = None) -> None:
        """Step number `step` (from 0) is done."""
        raise_if_stopped()
        done = step + 1
        if not self._bar.disable:
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update()
        elif self._label is not None:
            now = time.monotonic()
            is_last = done == self._n_steps
            if _silence.is_due(self._label, now) or (is_last and self._summary):
                _silence.broken(self._label, now)
                self._write(done, loss, now - self._began)

    def _write(self, done: int, loss: float | None, seconds: float) -> None:
        rate = seconds / (done - self._start)
        total = "" if self._n_steps is None else f"/{self._n_steps}"
        parts = [f"{self._unit} {done}{total}"]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        parts.append(f"{rate:.3g} s per {self._unit}")
        if self._n_steps is not None and done < self._n_steps:
            parts.append(f"{_duration(rate * (self._n_steps - done))} left")
        _log.info("%s: %s", self._label, ", ".join(parts))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def shown(items: Iterable[T], label: str | None, *, unit: str = "batch") -> Iterator[T]:
    """The items, with a sign of life where the loop over them lasts.

    Args:
        label: What the loop does; None shows nothing.
    """
    n_items = len(items) if isinstance(items, Sized) else None
    with Progress(label, 0, n_items, unit=unit, summary=False) as bar:
        for number, item in enumerate(items):
            yield item
            bar.advance(number)


class Waiting:
    """A context manager that says what is going on where no loop can count it.

    The first line comes after `first` seconds (default 3): short steps say nothing. Its
    beginning and its end are safe points of `storage.stopping`.
    """

    def __init__(self, label: str, first: float | None = None):
        self._label, self._over = label, threading.Event()
        self._first = WAIT if first is None else first

    def start(self) -> None:
        """Begin to wait; `stop` ends it."""
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Say no more."""
        self._over.set()

    def _watch(self) -> None:
        began, pause = time.monotonic(), self._first
        while not self._over.wait(pause):
            seconds = time.monotonic() - began
            _log.info("%s, %s so far", self._label, _duration(seconds))
            pause = min(2 * pause, LAST)

    def __enter__(self) -> "Waiting":
        raise_if_stopped()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            raise_if_stopped()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
