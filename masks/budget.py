"""A budget of units: every sample ablates (break) or keeps (isolate) k units in all.

The number k is drawn anew at every step, so that one ranking serves every size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.gate import DirectionSettings
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag

ANNEALED_SHARE = 0.8
"""Share of the run during which temperatures and noise change; then they are constant.
"""
_MAX_ROUNDS = 200
_TOLERANCE = 1e-9
S = TypeVar("S", bound="BudgetSettings")


@dataclass(frozen=True)
class BudgetSettings(DirectionSettings):
    """The range of k, of gates that have a budget."""

    k_min: float = flag(
        6.0,
        "smallest budget drawn, in units (ablated in break, kept in isolate); below 1 "
        "a share of all units",
        has_own_default=False,
    )
    k_max: float = flag(64.0, "largest budget drawn, likewise", has_own_default=False)
    opening: float = flag(
        0.0,
        "share of the run during which the budget comes down from all units to its "
        "range (isolate)",
        has_own_default=False,
    )

    def check_budget(self, n_units: int) -> None:
        """The range of k, in units, lies within the units.

        Raises:
            UserError: When it does not.
        """
        if not 0.0 < self.k_min <= self.k_max:
            raise UserError(
                "arguments k_min and k_max must satisfy 0 < k_min <= k_max, got "
                f"{self.k_min} and {self.k_max}; give the smallest and largest number "
                "of units"
            )
        if not self.k_max < n_units:
            raise UserError(
                f"argument k_max must be below the number of gated units ({n_units}), "
                f"got {self.k_max}; give a smaller k_max or gate more sites"
            )
        if not 0.0 <= self.opening < 1.0:
            raise UserError(
                "argument opening must lie in [0, 1), the share of the run with larger "
                f"budgets, got {self.opening}"
            )

    def budget_of(self, n_ablated: int, n_units: int) -> float:
        """k of a mask that ablates `n_ablated` of `n_units` units.

        Nothing and everything, for which no gates exist, become half a unit.
        """
        k = n_ablated if self.direction == "break" else n_units - n_ablated
        return min(max(float(k), 0.5), n_units - 0.5)

    @property
    def middle(self) -> float:
        """sqrt(k_min * k_max)."""
        return math.sqrt(self.k_min * self.k_max)

    def drawn(self, n_units: int, progress: float, rng: torch.Generator) -> float:
        """k at `progress` in [0, 1] of the run, log-uniform in its range.

        During `opening` both ends of the range move geometrically from all units.
        """
        low, high = math.log(self.k_min), math.log(self.k_max)
        if progress < self.opening:
            left = 1.0 - progress / self.opening
            most = math.log(0.99 * n_units)
            low, high = low + left * (most - low), high + left * (most - high)
        return math.exp(low + (high - low) * torch.rand((), generator=rng).item())


def in_units(settings: S, n_units: int) -> S:
    """The settings with a range of k in units, made to fit: k_max at most half of them.

    Ends below 1 are shares of `n_units`.
    """
    low, high = (as_units(k, n_units) for k in (settings.k_min, settings.k_max))
    high = min(max(high, 1.0), n_units / 2)
    return replace(settings, k_max=high, k_min=min(low, high / 4))


def as_units(k: float, n_units: int) -> float:
    """k in units; below 1 it is a share of all."""
    return k * n_units if k < 1.0 else k


def annealed(progress: float, start: float, end: float) -> float:
    """From `start` to `end`, linear during the first 80 % of the run."""
    share = min(max(progress, 0.0) / ANNEALED_SHARE, 1.0)
    return start + (end - start) * share


def solve_shift(
    gates_and_slopes: Callable[[float], tuple[Tensor, Tensor]],
    k: float,
    low: float,
    high: float,
) -> tuple[float, Float[Tensor, "unit"]]:
    """The shift tau in [low, high] at which the gates sum to `k`, and the gates there.

    Newton's method; a step that leaves the bracket becomes a bisection.

    Args:
        gates_and_slopes: tau -> (gates, their derivatives by -tau); the sum of the
            gates falls in tau.
    """
    tau = (low + high) / 2
    for _ in range(_MAX_ROUNDS):
        gates, slopes = gates_and_slopes(tau)
        excess = gates.sum().item() - k
        if abs(excess) <= _TOLERANCE * max(k, 1.0) or high <= low:
            break
        low, high = (tau, high) if excess > 0 else (low, tau)
        slope = slopes.sum().item()
        step = tau + excess / slope if slope > 0 else math.inf
        proposal = step if low < step < high else (low + high) / 2
        if proposal == tau:
            break
        tau = proposal
    return tau, gates


def centred(grad: Tensor, slopes: Tensor) -> Tensor:
    """The gradient of scores whose gates keep their sum: slopes (g - mean of g).

    From the implicit function tau(scores); the mean is weighted by the slopes. It sums
    to zero.
    """
    total = slopes.sum().clamp_min(torch.finfo(slopes.dtype).tiny)
    return slopes * (grad - (grad * slopes).sum() / total)


def check_positive(**settings: Any) -> None:
    """Refuse settings that must be positive.

    Raises:
        UserError: Naming all of them.
    """
    if not all(value > 0.0 for value in settings.values()):
        names, values = list(settings), [f"{value}" for value in settings.values()]
        raise UserError(
            f"arguments {' and '.join(names)} must be positive, got "
            f"{' and '.join(values)}"
        )
