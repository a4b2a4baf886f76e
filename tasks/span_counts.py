"""Span F1 from counts: an entity counts when its type and both its ends are right."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from data.tagged import Span, spans


def span_counts(
    gold: Sequence[str], predicted: Sequence[str]
) -> dict[tuple[str, str], int]:
    """True and false positives and misses by `("tp" | "fp" | "fn", type)`."""
    right: set[Span] = set(spans(gold))
    given: set[Span] = set(spans(predicted))
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for outcome, found in (
        ("tp", right & given),
        ("fp", given - right),
        ("fn", right - given),
    ):
        for kind, _, _ in found:
            counts[outcome, kind] += 1
    return counts


def precision_recall_f1(tp: float, fp: float, fn: float) -> tuple[float, float, float]:
    """Fractions; NaN where there is nothing to divide by."""
    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def ratio(part: float, whole: float) -> float:
    """`part / whole`, NaN for nothing out of nothing."""
    return part / whole if whole else math.nan


def mean_defined(scores: Sequence[float]) -> float:
    """The mean of the scores that are not NaN; NaN if none is."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan


def sums(counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Counts as numbers, summed over their examples."""
    return {name: float(value.detach().sum()) for name, value in counts.items()}
