"""Soft top-k gates: one ranking of the units that can be cut at any number of units.

Arora et al. (2026), https://arxiv.org/abs/2609.25518. Every step draws a number k,
finds the threshold tau with sum_i sigmoid((s_i - tau) / T) = k, and uses these sigmoids
as gates; the result is the order of the scores s. Departures: in the direction `break`,
k counts the *ablated* units; k is log-uniform in [k_min, k_max], because uniform draws
are rarely small; T is annealed; the bracket of tau is exact, so that a solution is
found for every 0 < k < n.
"""

import math
from typing import Any

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
from circuitcut.masks.gate_settings import SoftTopKSettings

_NO_GRADIENT = 1e-4


def soft_topk(
    scores: Float[Tensor, "unit"], k: float, temperature: float
) -> Float[Tensor, "unit"]:
    """Sigmoids of (scores - tau) / temperature that sum to `k`, for 0 < k < n_units.

    Differentiable in `scores` through the implicit function tau(scores): with
    w = z (1 - z), dL/ds_j = w_j / T (g_j - sum(g w) / sum(w)), which sums to zero.
    """
    return _SoftTopK.apply(scores, k, temperature)


class SoftTopKGate(Gate):
    """One score per unit; a sample softly keeps (isolate) or ablates (break) k units.

    The number k is random.

    Args:
        n_units: Number of gates.
        settings: Uses `k_min` and `k_max` in units, `temperature_start`,
            `temperature_end` and `direction`.

    Raises:
        UserError: When not 0 < k_min <= k_max < n_units, or a temperature is not
            positive.
    """

    settings_class = SoftTopKSettings

    def __init__(self, n_units: int, settings: SoftTopKSettings):
        super().__init__(n_units, settings)
        self.settings = settings
        self.temperature = settings.temperature_start
        self.progress = 0.0
        self.score = nn.Parameter(torch.zeros(n_units))

    @classmethod
    def check(cls, n_units: int, settings: SoftTopKSettings) -> None:
        """The range of k lies within the units, and temperatures are positive."""
        settings.check_budget(n_units)
        check_positive(
            temperature_start=settings.temperature_start,
            temperature_end=settings.temperature_end,
        )

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """The gates for one k, drawn log-uniformly from [k_min, k_max]."""
        return self.at(drawn(self.settings, self.n_units, self.progress, rng))

    def values(self) -> Float[Tensor, "unit"]:
        """The gates for k = sqrt(k_min * k_max)."""
        return self.at(self.settings.middle)

    def values_ablating(self, n_ablated: int) -> Float[Tensor, "unit"]:
        """The gates for this number of ablated units."""
        return self.at(self.settings.budget_of(n_ablated, self.n_units))

    def at(self, k: float) -> Float[Tensor, "unit"]:
        """The gates for k units, which are ablated in `break` and kept in `isolate`."""
        if self.settings.direction == "break":
            return 1.0 - soft_topk(-self.score, k, self.temperature)
        return soft_topk(self.score, k, self.temperature)

    def keep_probs(self) -> Float[Tensor, "unit"]:
        """The same as `values`; the settings determine their sum."""
        return self.values()

    def scores(self) -> Float[Tensor, "unit"]:
        """The trainable scores, which rank the units."""
        return self.score

    def anneal(self, progress: float) -> None:
        """Move T linearly from start to end during the first 80 % of the run."""
        self.progress = progress
        self.temperature = annealed(
            progress, self.settings.temperature_start, self.settings.temperature_end
        )

    def saturated_share(self) -> float:
        """Share of units within 1e-4 of 0 or 1 for k = sqrt(k_min * k_max)."""
        with torch.no_grad():
            values = self.values()
        return ((values * (1 - values)) < _NO_GRADIENT).float().mean().item()


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: float, temperature: float) -> Tensor:
        soft = _solve(scores.double(), k, temperature).to(scores.dtype)
        ctx.save_for_backward(soft)
        ctx.temperature = temperature
        return soft

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (soft,) = ctx.saved_tensors
        slopes = soft * (1 - soft) / ctx.temperature
        return centred(grad, slopes), None, None


def _solve(scores: Tensor, k: float, temperature: float) -> Tensor:
    """The gates.

    If all scores were equal to s, tau would be s - T logit(k / n). The values of this
    formula for the smallest and for the largest score therefore bracket tau.
    """
    n_units = scores.numel()
    shift = temperature * math.log(k / (n_units - k))

    def gates_and_slopes(tau: float) -> tuple[Tensor, Tensor]:
        soft = torch.sigmoid((scores - tau) / temperature)
        return soft, soft * (1 - soft) / temperature

    low, high = scores.min().item() - shift, scores.max().item() - shift
    return solve_shift(gates_and_slopes, k, low, high)[1]
