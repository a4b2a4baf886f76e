"""Settings of one optimisation: steps, learning rate, optimiser and schedule."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from circuitcut.storage.errors import UserError
from circuitcut.training.schedules import SCHEDULES, Schedule, learning_rate_factor

Optimiser = Literal["adam", "adamw", "sgd"]
OPTIMISERS: tuple[Optimiser, ...] = get_args(Optimiser)


@dataclass(frozen=True)
class FitSettings:
    """Settings of one optimisation.

    Raises:
        UserError: When a value is out of range.
    """

    n_steps: int
    lr: float
    optimiser: Optimiser = "adam"
    weight_decay: float = 0.0
    """Coupled (L2) for adam and sgd, decoupled for adamw."""
    momentum: float = 0.0
    """Of sgd."""
    beta2: float = 0.999
    """Of adam and adamw: decay of the running mean of squared gradients, per step."""
    schedule: Schedule = "constant"
    warmup: int = 0
    """Steps over which the learning rate rises."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all minimised parameters together."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one only at the end and when interrupted."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                got = getattr(self, name)
                raise UserError(f"{name} must be one of {list(known)}, got {got!r}")
        for name in ("n_steps", "weight_decay", "momentum", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"beta2 must lie in [0, 1), got {self.beta2}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm must be positive, got {self.clip_norm}")
        learning_rate_factor(self.schedule, 0, self.n_steps, self.warmup)
