"""A budget of units: every sample ablates (break) or keeps (isolate) k units in all.

The number k is drawn anew at every step, so that one ranking serves every size.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.gate_settings import BudgetSettings
from circuitcut.storage.errors import UserError

ANNEALED_SHARE = 0.8
"""Share of the run during which temperatures and noise change; then they are constant.
"""
_MAX_ROUNDS = 200
_TOLERANCE = 1e-9


def drawn(
    settings: BudgetSettings, n_units: int, progress: float, rng: torch.Generator
) -> float:
    """k at `progress` in [0, 1] of the run, log-uniform in its range.

    During `opening` both ends of the range move geometrically from all units.
    """
    low, high = math.log(settings.k_min), math.log(settings.k_max)
    if progress < settings.opening:
        left = 1.0 - progress / settings.opening
        most = math.log(0.99 * n_units)
        low, high = low + left * (most - low), high + left * (most - high)
    return math.exp(low + (high - low) * torch.rand((), generator=rng).item())


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
