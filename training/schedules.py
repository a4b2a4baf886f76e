"""Factors that move the learning rate and the price of a unit along a run."""

import math
from typing import Literal, assert_never, get_args

from circuitcut.storage.errors import UserError

Schedule = Literal["constant", "linear", "cosine", "late"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
LATE_START = 0.6
"""`late` is constant over this fraction of the run, then falls linearly to zero."""


def learning_rate_factor(
    kind: Schedule, step: int, n_steps: int, warmup: int = 0
) -> float:
    """Factor in [0, 1] of the learning rate at `step` (0 is the first of `n_steps`).

    The first `warmup` steps rise linearly to 1 (1/warmup, 2/warmup, ...); over the rest
    `linear` and `cosine` fall from 1 towards 0, which the step after the last would
    have, and `late` stays at 1 over the first 60 % and then falls linearly.

    Raises:
        UserError: When `warmup` does not leave a step.
    """
    if not 0 <= warmup < max(n_steps, 1):
        raise UserError(f"warmup must lie in 0..{n_steps - 1} steps, got {warmup}")
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(n_steps - warmup, 1))
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "late":
            return min(1.0, (1 - progress) / (1 - LATE_START))
        case _:
            assert_never(kind)


def price_ramp(step: int, n_steps: int, ramp_fraction: float) -> float:
    """Factor in [0, 1] that rises linearly from 0 over `ramp_fraction` of the run.

    A fraction of 0 gives 1 from the first step on.

    Raises:
        UserError: When `ramp_fraction` lies outside [0, 1].
    """
    if not 0 <= ramp_fraction <= 1:
        raise UserError(f"ramp_fraction must lie in [0, 1], got {ramp_fraction}")
    ramp = ramp_fraction * n_steps
    return 1.0 if step >= ramp else step / ramp
