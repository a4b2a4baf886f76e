"""What every gate gives: samples in [0, 1], a closed-form count and a ranking."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Direction = Literal["break", "isolate"]


@dataclass(frozen=True)
class GateSettings:
    """Settings of all gates; each gate reads its own."""

    direction: Direction = "break"
    keep_prob: float = 0.99
    """Hard concrete: initial probability that a gate is not zero."""
    k_min: float = 6.0
    """Soft top-k: smallest k drawn, in units (ablated in break, kept in isolate)."""
    k_max: float = 64.0
    temperature_start: float = 1.0
    temperature_end: float = 0.25
    power: float = 1.0
    """Hard concrete: a sample is raised to it; see `masks/hard_concrete.py`."""


class Gate(nn.Module, ABC):
    """A trainable vector of gates over all units of a run: 1 keeps, 0 ablates."""

    n_units: int

    @abstractmethod
    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One draw, once per step and outside the forward; `rng` is a CPU generator."""

    @abstractmethod
    def values(self) -> Float[Tensor, "unit"]:
        """Deterministic test-time gates."""

    @abstractmethod
    def keep_probs(self) -> Float[Tensor, "unit"]:
        """Probability (or, for deterministic gates, degree) of being kept."""

    @abstractmethod
    def scores(self) -> Float[Tensor, "unit"]:
        """Ranking of the units, the highest kept longest."""

    def anneal(self, progress: float) -> None:
        """Move schedules of the gate itself to `progress` in [0, 1] of the run."""
        del progress

    def project_(self) -> None:
        """Bring the parameters back into their range after an optimiser step."""
        return None

    def saturated_share(self) -> float:
        """Share of gates that get (almost) no gradient; 0 where every gate has one."""
        return 0.0
