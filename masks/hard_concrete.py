"""Hard-concrete gates: trainable masks with exact zeros and ones.

Louizos, Welling & Kingma (2018), "Learning Sparse Neural Networks through L0
Regularization", https://arxiv.org/abs/1712.01312. Symbols in comments are those of the
paper. Departures: noise is drawn by `sample`, once per step and outside the forward
pass, which gradient checkpointing runs twice; every gate starts at the same location;
the location is not clamped; a sample can be raised to a power, which changes neither
P(z = 0) nor P(z = 1). Reason for the power: if a norm reads only one gated vector, it
removes the scale z, and the loss depends on z only near 0. Few samples z are near 0,
but many samples z^5 are.

With `penalty="budget"` (the default) L0 is a constraint instead of a price: every
sample ablates (break) or keeps (isolate) k units exactly. One scalar shifts all
locations so that the sum is k. With a price alone the concept is broken by hundreds of
partly ablated units, and a cut of N units does not have their effect. There are two
further departures then:

* The backward pass uses dE[z]/dlog alpha, the slope of the *expected* gate, in place of
  the slope of the sample. The slope of a sample is zero at 0 and 1, so that only one
  gate in a hundred gets a gradient at a step, and chance decides which. If the loss is
  linear in each gate, both estimators have the same mean; this one has a gradient for
  every gate at every step.
* The scale of the logistic noise falls during the run, and beta where asked. With
  little noise, beta = 2/3 spreads a sample of k units over more than 2 k partly open
  gates, and a mask of k units is then another circuit than the trained one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from circuitcut.masks.budget import (
    annealed,
    centred,
    check_positive,
    drawn,
    solve_shift,
)
from circuitcut.masks.gate import Gate
from circuitcut.masks.gate_settings import HardConcreteSettings
from circuitcut.storage.errors import UserError

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma, zeta
_EPS = 1e-6  # u is clamped to [_EPS, 1 - _EPS]: its logit is infinite at 0 and 1
_NODES = 24
"""Points of the quadrature over t of E[z] = integral of P(z > t)."""


class HardConcreteGate(Gate):
    """Stochastic gates: z = clip(stretched sigmoid of (noise + log alpha)).

    Args:
        n_units: Number of gates.
        settings: With `penalty="budget"`: `k_min`, `k_max`, `opening`, `noise_start`,
            `noise_end` and `direction`; all locations start at 0. Else `keep_prob`, in
            (0, 1), the initial probability that a gate is not exactly zero; from 0.982
            on, the gates of the evaluation are exactly 1 at the start of training.
            `power` > 0 is the exponent of the samples.

    Raises:
        UserError: When a setting is outside its range.
    """

    settings_class = HardConcreteSettings

    def __init__(self, n_units: int, settings: HardConcreteSettings):
        super().__init__(n_units, settings)
        self.settings = settings
        self.has_budget = settings.penalty == "budget"
        self.power, self.beta = settings.power, settings.stretch_temperature
        # of gates without a budget, whose beta is constant
        self.zero_logit = self.beta * math.log(-STRETCH_LOW / STRETCH_HIGH)
        self.noise = settings.noise_start if self.has_budget else 1.0
        self.progress = 0.0
        keep_prob, start = settings.keep_prob, 0.0
        if not self.has_budget:
            start = math.log(keep_prob / (1 - keep_prob)) + self.zero_logit
        self.log_alpha = nn.Parameter(torch.full((n_units,), start))

    @classmethod
    def check(cls, n_units: int, settings: HardConcreteSettings) -> None:
        """`keep_prob` lies in (0, 1), temperatures and `power` are positive."""
        if settings.penalty == "budget":
            settings.check_budget(n_units)
        keep_prob = settings.keep_prob
        if not 0.0 < keep_prob < 1.0:
            raise UserError(
                "argument keep_prob must lie strictly between 0 and 1, got "
                f"{keep_prob}; 0.99 is a good value"
            )
        check_positive(power=settings.power)
        check_positive(
            stretch_temperature=settings.stretch_temperature,
            stretch_temperature_end=settings.stretch_temperature_end,
        )
        check_positive(noise_start=settings.noise_start, noise_end=settings.noise_end)

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One sample of the gates; `rng` is a CPU generator: equal on all devices."""
        k = None
        if self.has_budget:
            k = drawn(self.settings, self.n_units, self.progress, rng)
        u = torch.rand(self.n_units, generator=rng).clamp(_EPS, 1 - _EPS)
        noise = u.logit().to(self.log_alpha)
        if k is not None:
            return self.at(k, noise * self.noise)
        return _stretch((noise + self.log_alpha) / self.beta) ** self.power

    def at(
        self, k: float, noise: Float[Tensor, "unit"] | None = None
    ) -> Float[Tensor, "unit"]:
        """The gates for k units, which are ablated in `break` and kept in `isolate`."""
        noise = torch.zeros_like(self.log_alpha) if noise is None else noise
        curve = _Curve(self.beta, self.noise, self.power)
        ablating = self.settings.direction == "break"
        return _Budgeted.apply(self.log_alpha, noise, k, curve, ablating)

    def values(self) -> Float[Tensor, "unit"]:
        """The gates for evaluation, without noise; with a budget for the middle k."""
        if self.has_budget:
            return self.at(self.settings.middle)
        return _stretch(self.log_alpha)

    def values_ablating(self, n_ablated: int) -> Float[Tensor, "unit"]:
        """The gates without noise; with a budget for this number of ablated units."""
        if self.has_budget:
            return self.at(self.settings.budget_of(n_ablated, self.n_units))
        return self.values()

    def keep_probs(self) -> Float[Tensor, "unit"]:
        """P(gate > 0) in closed form; its sum is the expected number of kept units.

        With a budget the gates themselves, whose sum is given.
        """
        if self.has_budget:
            return self.values()
        return torch.sigmoid(self.log_alpha - self.zero_logit)

    def scores(self) -> Float[Tensor, "unit"]:
        """The locations log alpha."""
        return self.log_alpha

    def anneal(self, progress: float) -> None:
        """Move noise and beta of gates with a budget, linearly in 80 % of a run."""
        self.progress = progress
        if self.has_budget:
            settings = self.settings
            start, end = settings.noise_start, settings.noise_end
            self.noise = annealed(progress, start, end)
            start, end = settings.stretch_temperature, settings.stretch_temperature_end
            self.beta = annealed(progress, start, end)

    def saturated_share(self) -> float:
        """Expected share of samples at exactly 0 or 1; with a budget of the gates."""
        with torch.no_grad():
            if self.has_budget:
                values = self.values()
                return ((values == 0) | (values == 1)).float().mean().item()
            is_one = torch.sigmoid(self.log_alpha + self.zero_logit)
            return 1.0 - (self.keep_probs() - is_one).mean().item()


@dataclass(frozen=True)
class _Curve:
    """A gate as a function of its location, and its expectation over the noise."""

    beta: float
    noise: float
    power: float

    def at(self, location: Tensor) -> tuple[Tensor, Tensor]:
        """The gate z^power and its derivative by the location."""
        soft = torch.sigmoid(location / self.beta)
        span = STRETCH_HIGH - STRETCH_LOW
        stretched = STRETCH_LOW + span * soft
        gate = stretched.clamp(0.0, 1.0)
        inside = (stretched > 0.0) & (stretched < 1.0)
        slope = inside * span * soft * (1 - soft) / self.beta
        if self.power != 1.0:
            slope = slope * self.power * gate ** (self.power - 1.0)
        return gate**self.power, slope

    def expected_slope(self, location: Tensor) -> Tensor:
        """dE[z^power]/dlocation under logistic noise.

        E = integral over t in (0, 1) of P(z^power > t), and z^power > t where the
        noisy location is above beta logit((t^(1 / power) - gamma) / (zeta - gamma)).
        """
        points, weights = np.polynomial.legendre.leggauss(_NODES)
        t = (points + 1) / 2
        p = (t ** (1 / self.power) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        limits = self.beta * np.log(p / (1 - p))
        total = torch.zeros_like(location)
        for limit, weight in zip(limits.tolist(), (weights / 2).tolist(), strict=True):
            above = torch.sigmoid((location - limit) / self.noise)
            total += weight / self.noise * above * (1 - above)
        return total


class _Budgeted(torch.autograd.Function):
    """Gates that sum to a budget; the gradient is that of the expected gates."""

    @staticmethod
    def forward(
        ctx: Any,
        log_alpha: Tensor,
        noise: Tensor,
        k: float,
        curve: _Curve,
        ablating: bool,
    ) -> Tensor:
        noisy = (log_alpha + noise).double()
        sign = 1.0 if ablating else -1.0

        def counted(tau: float) -> tuple[Tensor, Tensor]:
            gates, slopes = curve.at(noisy + sign * tau)
            return (1.0 - gates if ablating else gates), slopes

        # beyond +- reach the gates are exactly 0 and 1
        reach = curve.beta * math.log(STRETCH_HIGH / -STRETCH_LOW) + 1e-3
        low, high = (sign * noisy).neg().aminmax()
        tau, gates = solve_shift(counted, k, low.item() - reach, high.item() + reach)
        slopes = curve.expected_slope(log_alpha + sign * tau)
        ctx.save_for_backward(slopes)
        return (1.0 - gates if ablating else gates).to(log_alpha.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return centred(grad, slopes), None, None, None, None


def _stretch(logits: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    span = STRETCH_HIGH - STRETCH_LOW
    return (STRETCH_LOW + span * torch.sigmoid(logits)).clamp(0.0, 1.0)
