"""How far a loop has come: a bar on a terminal, a few log lines elsewhere."""

import logging
import time

from tqdm import tqdm

N_LINES = 10
"""Log lines of one loop where there is no terminal."""
SHORT = 100
"""A loop of fewer steps gets one line, at its end: relearning has dozens of them."""

_log = logging.getLogger(__name__)


class Progress:
    """A context manager that shows the steps of one loop.

    Args:
        label: Stands before the numbers; None shows nothing.
        start: Steps done before.
        n_steps: Steps of the whole loop.
    """

    def __init__(self, label: str | None, start: int, n_steps: int):
        self._bar = tqdm(
            desc=label,
            initial=start,
            total=n_steps,
            disable=True if label is None else None,  # None: unless on a terminal
            dynamic_ncols=True,
        )
        self._label = label
        self._start, self._n_steps = start, n_steps
        self._every = n_steps // N_LINES if n_steps >= SHORT else n_steps
        self._began = time.monotonic()

    def advance(self, step: int, loss: float) -> None:
        """Step number `step` (from 0) is done."""
        done = step + 1
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update()
        elif self._label and (done % self._every == 0 or done == self._n_steps):
            seconds = (time.monotonic() - self._began) / (done - self._start)
            _log.info(
                "%s: step %d/%d, loss %.4g, %.3g s per step",
                *(self._label, done, self._n_steps, loss, seconds),
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
