"""What a run has measured so far, kept in checkpoints: a killed run goes on from there.

Written at most once a minute, after a whole batch; a kill loses what came since.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from circuitcut.storage.checkpoints import load_latest, save_state
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import Count, check_type
from circuitcut.weight_classes.activity import Activity
from circuitcut.weight_classes.tokens.effects import Effects

EVERY = 60.0
"""Seconds between two checkpoints."""

_Pairs = list[tuple[Count, float]]


class _Change(TypedDict):
    size: float
    text: Count
    position: Count
    ids: list[Count]
    clean: float
    ablated: float
    promoted: _Pairs
    suppressed: _Pairs


class SavedEffects:
    """Effects and activity of a run, and how many batches they have seen.

    Args:
        folder: Of the checkpoints; it need not exist.
        n_batches: Of the whole run.

    Raises:
        UserError: When there are checkpoints and all of them are damaged, or of another
            run.
    """

    def __init__(
        self, folder: Path, effects: Effects, active: Activity, n_batches: int
    ):
        self._folder, self._effects, self._active = folder, effects, active
        self.n_batches, self.n_done = n_batches, 0
        self._saved_at = time.monotonic()
        found = load_latest(folder, self._check)
        if found is not None:
            self.n_done, state = found
            effects.restore_(state["effects"])
            active.restore_(state["activity"])

    def done(self, n_done: int) -> None:
        """Save after so many batches, if the last time is long ago or all are done."""
        is_due = time.monotonic() - self._saved_at >= EVERY
        if is_due or n_done == self.n_batches:
            save_state(self._folder, n_done, self._state())
            self._saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {"effects": self._effects.state(), "activity": self._active.state()}

    def _check(self, step: int, state: Mapping[str, Any]) -> None:
        if step > self.n_batches:
            raise UserError(f"it has {step:,} batches of {self.n_batches:,}")
        check_form(self._state(), state)


def check_form(expected: Any, found: Any, where: str = "state") -> None:
    """Refuse a state whose keys, types, shapes or data types differ from `expected`.

    Lists of changed texts may have any length.

    Raises:
        UserError: Naming the entry.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise UserError(f"{where} must have {', '.join(expected)}")
        for name, value in expected.items():
            check_form(value, found[name], f"{where}.{name}")
    elif isinstance(expected, list):
        check_type(found, list[_Change], where, closed=True)
    elif isinstance(expected, Tensor):
        _check_tensor(expected, found, where)
    else:
        check_type(found, Count if expected is not None else None, where)


def _check_tensor(expected: Tensor, found: Any, where: str) -> None:
    fits = isinstance(found, Tensor) and (found.shape, found.dtype) == (
        expected.shape,
        expected.dtype,
    )
    if not fits:
        raise UserError(f"{where} must be {list(expected.shape)} {expected.dtype}")
    is_count = not found.dtype.is_floating_point
    if bool((found < 0).any()) if is_count else bool(torch.isnan(found).any()):
        raise UserError(f"{where} must be {'0 or above' if is_count else 'numbers'}")
