"""Soft top-k gates: one ranking of the units that can be cut at any number of units.

Arora et al. (2026), https://arxiv.org/abs/2609.25518. Every step draws a number k,
finds the threshold tau with sum_i sigmoid((s_i - tau) / T) = k, and uses these sigmoids
as gates; the result is the order of the scores s. Departures: in the direction `break`,
k counts the *ablated* units; k is log-uniform in [k_min, k_max], because uniform draws
are rarely small; T is annealed; the bracket of tau is exact, so that a solution is
found for every 0 < k < n.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from circuitcut.masks.gate import DirectionSettings, Gate
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag

ANNEALED_SHARE = 0.8
"""Share of the run during which the temperature changes; then it is constant."""
_NO_GRADIENT = 1e-4
_MAX_ROUNDS = 200
_TOLERANCE = 1e-10


def soft_topk(
    scores: Float[Tensor, "unit"], k: float, temperature: float
) -> Float[Tensor, "unit"]:
    """Sigmoids of (scores - tau) / temperature that sum to `k`, for 0 < k < n_units.

    Differentiable in `scores` through the implicit function tau(scores): with
    w = z (1 - z), dL/ds_j = w_j / T (g_j - sum(g w) / sum(w)), which sums to zero.
    """
    return _SoftTopK.apply(scores, k, temperature)


@dataclass(frozen=True)
class SoftTopKSettings(DirectionSettings):
    """Settings of soft top-k gates."""

    k_min: float = flag(
        6.0,
        "topk: smallest k drawn, in units (ablated in break, kept in isolate)",
        has_own_default=False,
    )
    k_max: float = flag(64.0, "topk: largest k drawn, in units", has_own_default=False)
    temperature_start: float = flag(
        1.0, "topk: temperature at the first step", has_own_default=False
    )
    temperature_end: float = flag(
        0.25, "topk: temperature in the last fifth of the run", has_own_default=False
    )


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

    recipe: ClassVar[dict[str, Any]] = {}
    recipe_isolating_edges: ClassVar[dict[str, Any]] = {}
    has_threshold = False

    def __init__(self, n_units: int, settings: SoftTopKSettings):
        super().__init__(n_units, settings)
        self.settings = settings
        self.temperature = settings.temperature_start
        self.score = nn.Parameter(torch.zeros(n_units))

    @classmethod
    def check(cls, n_units: int, settings: SoftTopKSettings) -> None:
        """The range of k lies within the units, and temperatures are positive."""
        k_min, k_max = settings.k_min, settings.k_max
        if not 0.0 < k_min <= k_max:
            raise UserError(
                "arguments k_min and k_max must satisfy 0 < k_min <= k_max, got "
                f"{k_min} and {k_max}; give the smallest and largest number of units"
            )
        if not k_max < n_units:
            raise UserError(
                f"argument k_max must be below the number of gated units ({n_units}), "
                f"got {k_max}; give a smaller k_max or gate more sites"
            )
        if not min(settings.temperature_start, settings.temperature_end) > 0.0:
            raise UserError(
                "arguments temperature_start and temperature_end must be positive, got "
                f"{settings.temperature_start} and {settings.temperature_end}; "
                "1.0 and 0.25 are the defaults"
            )

    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """The gates for one k, drawn log-uniformly from [k_min, k_max]."""
        low, high = math.log(self.settings.k_min), math.log(self.settings.k_max)
        drawn = torch.rand((), generator=rng).item()
        return self.at(math.exp(low + (high - low) * drawn))

    def values(self) -> Float[Tensor, "unit"]:
        """The gates for k = sqrt(k_min * k_max)."""
        return self.at(math.sqrt(self.settings.k_min * self.settings.k_max))

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
        share = min(max(progress, 0.0) / ANNEALED_SHARE, 1.0)
        start, end = self.settings.temperature_start, self.settings.temperature_end
        self.temperature = start + (end - start) * share

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
        slope = soft * (1 - soft)
        total = slope.sum().clamp_min(torch.finfo(slope.dtype).tiny)
        centred = grad - (grad * slope).sum() / total
        return slope * centred / ctx.temperature, None, None


def _solve(scores: Tensor, k: float, temperature: float) -> Tensor:
    """Newton's method for tau; a step that leaves the bracket becomes a bisection.

    If all scores were equal to s, tau would be s - T logit(k / n). The values of this
    formula for the smallest and for the largest score therefore bracket tau.
    """
    n_units = scores.numel()
    shift = temperature * math.log(k / (n_units - k))
    low, high = scores.min().item() - shift, scores.max().item() - shift
    tau = (low + high) / 2
    for _ in range(_MAX_ROUNDS):
        soft = torch.sigmoid((scores - tau) / temperature)
        excess = soft.sum().item() - k
        if abs(excess) <= _TOLERANCE * max(k, 1.0) or high <= low:
            break
        low, high = (tau, high) if excess > 0 else (low, tau)
        slope = (soft * (1 - soft)).sum().item() / temperature
        step = tau + excess / slope if slope > 0 else math.inf
        middle = (low + high) / 2
        proposal = step if low < step < high else middle
        if proposal == tau:
            break
        tau = proposal
    return soft
