"""Mean and 95 % interval of a few independent numbers, by Student's t."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
Ends = list[float | None]


def mean_and_interval(
    values: Sequence[float | int | None],
) -> tuple[float | None, Ends]:
    """Mean and 95 % interval over seeds or draws; no interval of one number.

    Numbers that are not defined (None) do not count.

    Returns:
        The mean, None where no number is defined, and the interval's ends.
    """
    defined = np.array([value for value in values if value is not None], dtype=float)
    if not len(defined):
        return None, [None, None]
    mean = float(defined.mean())
    if len(defined) < 2:
        return mean, [None, None]
    half = stats.t.ppf((1 + LEVEL) / 2, len(defined) - 1) * stats.sem(defined)
    return mean, [mean - float(half), mean + float(half)]
