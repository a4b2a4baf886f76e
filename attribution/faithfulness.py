"""Faithfulness of circuits of every size, and the areas CPR and CMD.

A. Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark",
https://arxiv.org/abs/2504.13151: f(C) = (m(C) - m(none)) / (m(all) - m(none)). m(C) is
the concept's mean margin (with one rival: the logit difference) when all units outside
the circuit C are ablated. A circuit is the top share of a ranking. CPR is the area
under f, CMD the area under |1 - f|.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from circuitcut.storage.errors import UserError

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges that are kept."""
LEAST_RANGE = 1e-3
"""Nats. If |m(all) - m(none)| is smaller, faithfulness is undefined."""


def faithfulness(value: float, whole: float, empty: float) -> float | None:
    """(value - empty) / (whole - empty), which may exceed 1; None if undefined.

    Args:
        value: Margin of the circuit, in nats.
        whole: Margin of the whole model.
        empty: Margin of the empty circuit.
    """
    difference = whole - empty
    return (value - empty) / difference if abs(difference) >= LEAST_RANGE else None


def areas(
    fractions: Sequence[float], shares: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """CPR and CMD by the trapezoidal rule over the fractions, on a linear axis.

    With fractions from .001 to 1, circuits with f = 1 have CPR .999 and CMD 0.

    Raises:
        UserError: When there are fewer than two fractions or they do not increase.
    """
    distances = [None if f is None else abs(1 - f) for f in shares]
    return area(fractions, shares), area(fractions, distances)


def area(fractions: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The area under values by the trapezoidal rule; None where one is undefined.

    Raises:
        UserError: When there are fewer than two fractions or they do not increase.
    """
    if len(fractions) < 2 or list(fractions) != sorted(set(fractions)):
        raise UserError(f"fractions must be two or more and rise, got {fractions}")
    known = [value for value in values if value is not None and not math.isnan(value)]
    if len(known) < len(values):
        return None
    steps = zip(pairwise(fractions), pairwise(known), strict=True)
    return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, x1), (y0, y1) in steps)
