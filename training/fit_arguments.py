"""Arguments of `fit` that belong together: ascent, callbacks and checkpoints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class Ascent:
    """Parameters that are maximised while the others are minimised.

    Raises:
        UserError: When there are parameters and `lr` is not positive and finite.
    """

    parameters: Mapping[str, nn.Parameter]
    """By name, e.g. Lagrange multipliers; an empty mapping means none. They follow the
    schedule of the minimised ones, without weight decay and without clipping."""
    lr: float
    """Their learning rate, before the schedule's factor."""

    def __post_init__(self) -> None:
        if self.parameters and not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(
                f"lr of Ascent must be positive and finite, got {self.lr}; give a "
                "positive learning rate, or no parameters to maximise"
            )


@dataclass(frozen=True)
class Watch:
    """What is called and shown while a loop runs."""

    after_step: Callable[[int], None] | None = None
    """Called on every process with the number of the step (from 0), after the optimiser
    moved the parameters: for projections and running averages."""
    on_log: Callable[[int, dict[str, float]], None] | None = None
    """Called on the main process with the number of every step and the numbers of its
    loss, `loss`, `grad_norm` (before clipping) and `lr`."""
    progress: str | None = None
    """Label of the progress bar (on a terminal) or of the log lines (elsewhere); None
    shows neither."""


@dataclass(frozen=True)
class Checkpoints:
    """Where a loop saves its state, and whether it continues from there."""

    folder: Path | None = None
    """Folder of checkpoints; None writes none. It must hold none before, unless
    `resume`."""
    resume: bool = False
    """Continue from the newest whole checkpoint, if there is one."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the run is made with (`storage.provenance`): kept in every checkpoint, and
    compared when it continues."""
    at_end: bool = True
    """Save the state after the last step too; False suits a caller that keeps what it
    needs of it. An interrupted loop always saves its state."""


NO_WATCH = Watch()
"""Nothing is called and nothing shown."""
NO_CHECKPOINTS = Checkpoints()
"""Nothing is saved."""
