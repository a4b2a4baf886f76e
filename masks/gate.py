"""Base class of gates: samples in [0, 1], a closed-form count and a ranking."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.gate_settings import DirectionSettings


class Gate(nn.Module, ABC):
    """A trainable vector of gates over all units of a run: 1 keeps, 0 ablates.

    Args:
        n_units: Number of gates.
        settings: `gate_settings.GateSettings`; each gate reads only its own fields.
    """

    settings_class: ClassVar[type[DirectionSettings]] = DirectionSettings
    """Declares the gate's own settings."""
    ranks_freely: ClassVar[bool] = True
    """Whether scores may be any numbers, so that they can start from a ranking."""
    n_units: int

    def __init__(self, n_units: int, settings: Any):
        super().__init__()
        self.check(n_units, settings)
        self.n_units = n_units

    @classmethod
    def check(cls, n_units: int, settings: Any) -> None:
        """Refuse settings that this gate cannot have; asked before a run as well.

        Raises:
            UserError: Naming the setting, its rule and the value.
        """
        return None

    @classmethod
    def has_threshold(cls, settings: Any) -> bool:
        """Whether units with a gate above 0.5 are kept; see `DirectionSettings`."""
        return cls.settings_class.has_threshold(settings)

    @abstractmethod
    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One sample of the gates; called once per step, outside the forward pass.

        `rng` is a CPU generator.
        """

    @abstractmethod
    def values(self) -> Float[Tensor, "unit"]:
        """Deterministic gates for evaluation."""

    def values_ablating(self, n_ablated: int) -> Float[Tensor, "unit"]:
        """Deterministic gates of a mask that ablates `n_ablated` units.

        Gates with a threshold have one size, and these are their `values`.
        """
        del n_ablated
        return self.values()

    @abstractmethod
    def keep_probs(self) -> Float[Tensor, "unit"]:
        """Probability that a unit is kept; for deterministic gates the gate's value."""

    @abstractmethod
    def scores(self) -> Float[Tensor, "unit"]:
        """Scores that rank the units; the units with the lowest are ablated first."""

    def anneal(self, progress: float) -> None:
        """Set the schedules of the gate (temperature) to `progress` in [0, 1]."""
        del progress

    def project_(self) -> None:
        """Clamp the parameters to their range after an optimiser step."""
        return None

    def round_(self) -> None:
        """Set gates that are parameters themselves to 0 or 1; other gates stay."""
        return None

    def saturated_share(self) -> float:
        """Share of gates with (almost) no gradient; 0 if every gate has one."""
        return 0.0
