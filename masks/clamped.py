"""Clamped gates: a real number per unit, kept in [0, 1] by projection.

Li, Davies & Nadeau (2023), "Circuit Breaking", https://arxiv.org/abs/2309.05973: masks
start at 1, are clamped after every optimiser step, and are rounded at 0.5 every so many
steps and at the end. The method is fast and has no noise; the results of the soft and
of the rounded mask can differ a lot. docs/howto/published_recipes.md has the published
settings. Departure: a run never stops early at a small number of ablated units.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.gate import Gate
from circuitcut.masks.gate_settings import ClampedSettings
from circuitcut.storage.errors import UserError


class ClampedGate(Gate):
    """The gate is the parameter; `project_` clamps it to [0, 1] after every step."""

    settings_class = ClampedSettings
    ranks_freely = False

    @classmethod
    def check(cls, n_units: int, settings: ClampedSettings) -> None:
        """These gates have no budget."""
        if settings.penalty == "budget":
            raise UserError(
                "gate clamped cannot hold a budget; use --penalty price, lagrangian "
                "or none, or the gate hard_concrete or topk"
            )

    def __init__(self, n_units: int, settings: ClampedSettings):
        super().__init__(n_units, settings)
        self.gate = nn.Parameter(torch.ones(n_units))

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """The gates, without noise."""
        del rng
        return self.values()

    def values(self) -> Float[Tensor, "unit"]:
        """The gates in [0, 1]; the gradient is not cut off at 0 and 1."""
        return self.gate.clamp(0.0, 1.0)

    def keep_probs(self) -> Float[Tensor, "unit"]:
        """Degree of being kept: the gate."""
        return self.values()

    def scores(self) -> Float[Tensor, "unit"]:
        """The gates; many of them have the same value 1."""
        return self.gate

    def project_(self) -> None:
        """Clamp to [0, 1]."""
        with torch.no_grad():
            self.gate.clamp_(0.0, 1.0)

    def round_(self) -> None:
        """Gates above 0.5 become 1, others 0, as in the finished mask."""
        with torch.no_grad():
            self.gate.copy_(self.gate > 0.5)
