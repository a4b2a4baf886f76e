"""How faithful circuits of every size are: shares of the margin, and areas under them.

A. Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark",
https://arxiv.org/abs/2504.13151: f(C) = (m(C) - m(none)) / (m(all) - m(none)), m the
concept's mean margin (the logit difference, where there is one rival) with everything
outside the circuit C ablated. Circuits are the top shares of a ranking, and CPR and CMD
the areas under f and under |1 - f|.
"""

from collections.abc import Sequence

import torch

from circuitcut.storage.errors import UserError

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges that are kept."""
LEAST_RANGE = 1e-3
"""Nats; where less lies between all and none, shares of it say nothing."""


def faithfulness(value: float, whole: float, empty: float) -> float | None:
    """Share of the way from the empty circuit to the whole model; may exceed 1."""
    between = whole - empty
    return (value - empty) / between if abs(between) >= LEAST_RANGE else None


def areas(
    fractions: Sequence[float], shares: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """CPR and CMD: trapezoids over the fractions, on a linear axis.

    From .001 to 1 a circuit that is always faithful has CPR .999 and CMD 0.

    Raises:
        UserError: When there are fewer than two fractions or they do not rise.
    """
    if len(fractions) < 2 or list(fractions) != sorted(set(fractions)):
        raise UserError(f"fractions must be two or more and rise, got {fractions}")
    if any(share is None for share in shares):
        return None, None
    x = torch.tensor(fractions, dtype=torch.float64)
    f = torch.tensor(shares, dtype=torch.float64)
    cpr, cmd = torch.trapezoid(f, x), torch.trapezoid((1 - f).abs(), x)
    return cpr.item(), cmd.item()
