"""Hard-concrete gates: trainable masks with exact zeros and ones.

Louizos, Welling & Kingma (2018), "Learning Sparse Neural Networks through L0
Regularization", https://arxiv.org/abs/1712.01312. Symbols in comments are those of the
paper. Departures: noise is drawn by `sample`, once per step and outside the forward
pass, which gradient checkpointing runs twice; every gate starts at the same location;
the location is not clamped; a sample can be raised to a power, which changes neither
P(z = 0) nor P(z = 1). Reason for the power: if a norm reads only one gated vector, it
removes the scale z, and the loss depends on z only near 0. Few samples z are near 0,
but many samples z^5 are.
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
_EPS = 1e-6  # u is clamped to [_EPS, 1 - _EPS]: its logit is infinite at 0 and 1


@dataclass(frozen=True)
class HardConcreteSettings(DirectionSettings):
    """Settings of hard-concrete gates."""

    keep_prob: float = flag(
        0.99, "hard_concrete: initial P(gate > 0)", has_own_default=False
    )
    power: float = flag(
        1.0,
        "hard_concrete: exponent of the samples; above 1, more samples are near 0",
        has_own_default=False,
    )


class HardConcreteGate(Gate):
    """Independent stochastic gates: z = clip(stretched sigmoid of (noise + log alpha)).

    Args:
        n_units: Number of gates.
        settings: `keep_prob`, in (0, 1), is the initial probability that a gate is not
            exactly zero. From 0.982 on, the gates of the evaluation are exactly 1 at
            the start of training. `power` > 0 is the exponent of the samples.

    Raises:
        UserError: When `keep_prob` is outside (0, 1), or `power` is not positive.
    """

    def __init__(self, n_units: int, settings: HardConcreteSettings):
        super().__init__(n_units, settings)
        keep_prob = settings.keep_prob
        self.power = settings.power
        log_alpha = math.log(keep_prob / (1 - keep_prob)) + _ZERO_LOGIT
        self.log_alpha = nn.Parameter(torch.full((n_units,), log_alpha))

    @classmethod
    def check(cls, n_units: int, settings: HardConcreteSettings) -> None:
        """`keep_prob` lies in (0, 1), and `power` is positive."""
        keep_prob = settings.keep_prob
        if not 0.0 < keep_prob < 1.0:
            raise UserError(
                "argument keep_prob must lie strictly between 0 and 1, got "
                f"{keep_prob}; 0.99 is a good value"
            )
        if not settings.power > 0.0:
            raise UserError(
                f"argument power must be positive, got {settings.power}; 1 leaves the "
                "samples unchanged"
            )

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One sample of the gates; `rng` is a CPU generator: equal on all devices."""
        u = torch.rand(self.n_units, generator=rng).clamp(_EPS, 1 - _EPS)
        noise = u.logit().to(self.log_alpha)
        return _stretch((noise + self.log_alpha) / TEMPERATURE) ** self.power

    def values(self) -> Float[Tensor, "unit"]:
        """The deterministic gates for evaluation (without temperature)."""
        return _stretch(self.log_alpha)

    def keep_probs(self) -> Float[Tensor, "unit"]:
        """P(gate > 0) in closed form; its sum is the expected number of kept units."""
        return torch.sigmoid(self.log_alpha - _ZERO_LOGIT)

    def scores(self) -> Float[Tensor, "unit"]:
        """The locations log alpha."""
        return self.log_alpha

    def saturated_share(self) -> float:
        """Expected share of samples at exactly 0 or 1, which have no gradient."""
        with torch.no_grad():
            is_one = torch.sigmoid(self.log_alpha + _ZERO_LOGIT)
            return 1.0 - (self.keep_probs() - is_one).mean().item()


def _stretch(logits: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    span = STRETCH_HIGH - STRETCH_LOW
    return (STRETCH_LOW + span * torch.sigmoid(logits)).clamp(0.0, 1.0)
