"""Hard-concrete gates: trainable masks with exact zeros and ones.

Louizos, Welling & Kingma (2018), "Learning Sparse Neural Networks through L0
Regularization", https://arxiv.org/abs/1712.01312. Symbols in comments are theirs.
Departures: noise is drawn by `sample`, once per step and outside the forward pass,
which gradient checkpointing runs twice; every gate starts at the same location; the
location is not clamped; a sample may be raised to a power, which moves neither P(z = 0)
nor P(z = 1). A norm undoes what a gate does to the only thing it reads, so that the
loss changes near z = 0 alone, where hardly a sample falls; those of z^5 do.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.gate import DirectionSettings, Gate
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma, zeta
TEMPERATURE = 2 / 3  # beta
_ZERO_LOGIT = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)
_EPS = 1e-6  # keeps u away from 0 and 1, where its logit is infinite


@dataclass(frozen=True)
class HardConcreteSettings(DirectionSettings):
    """Settings of hard-concrete gates."""

    keep_prob: float = flag(
        0.99, "hard_concrete: initial P(gate > 0)", has_own_default=False
    )
    power: float = flag(
        1.0,
        "hard_concrete: samples are raised to it; above 1, more of them lie near 0",
        has_own_default=False,
    )


class HardConcreteGate(Gate):
    """Independent stochastic gates: z = clip(stretched sigmoid of (noise + log alpha)).

    Args:
        n_units: Number of gates.
        settings: `keep_prob`, in (0, 1), is the initial probability that a gate is not
            exactly zero. At 0.982 and above the test-time gate is exactly 1 until
            training moves it. Samples are raised to `power`, which is positive.

    Raises:
        UserError: When `keep_prob` is outside (0, 1), or `power` not positive.
    """

    def __init__(self, n_units: int, settings: HardConcreteSettings):
        super().__init__(n_units, settings)
        keep_prob = settings.keep_prob
        if not 0.0 < keep_prob < 1.0:
            raise UserError(
                "argument keep_prob must lie strictly between 0 and 1, got "
                f"{keep_prob}; 0.99 is a good start"
            )
        if not settings.power > 0.0:
            raise UserError(
                f"argument power must be positive, got {settings.power}; 1 is plain"
            )
        self.power = settings.power
        log_alpha = math.log(keep_prob / (1 - keep_prob)) + _ZERO_LOGIT
        self.log_alpha = nn.Parameter(torch.full((n_units,), log_alpha))

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One draw of the gates; `rng` is a CPU generator, so devices agree."""
        u = torch.rand(self.n_units, generator=rng).clamp(_EPS, 1 - _EPS)
        noise = u.logit().to(self.log_alpha)
        return _stretch((noise + self.log_alpha) / TEMPERATURE) ** self.power

    def values(self) -> Float[Tensor, "unit"]:
        """The deterministic test-time gates (no temperature)."""
        return _stretch(self.log_alpha)

    def keep_probs(self) -> Float[Tensor, "unit"]:
        """P(gate > 0) in closed form; its sum is the expected number of kept units."""
        return torch.sigmoid(self.log_alpha - _ZERO_LOGIT)

    def scores(self) -> Float[Tensor, "unit"]:
        """The locations log alpha."""
        return self.log_alpha

    def saturated_share(self) -> float:
        """Expected share of gates drawn at exactly 0 or 1, which get no gradient."""
        with torch.no_grad():
            is_one = torch.sigmoid(self.log_alpha + _ZERO_LOGIT)
            return 1.0 - (self.keep_probs() - is_one).mean().item()


def _stretch(logits: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    span = STRETCH_HIGH - STRETCH_LOW
    return (STRETCH_LOW + span * torch.sigmoid(logits)).clamp(0.0, 1.0)
