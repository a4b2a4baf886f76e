"""Scores of a task as abilities: above a guess, of a loss the probability per token."""

import math
from collections.abc import Mapping

from circuitcut.relearning.recovery import ability
from circuitcut.tasks.base import Metric

Scores = Mapping[str, float | None]


def ability_of(metric: Metric, scores: Scores) -> float | None:
    """`relearning.recovery.ability` of a task's score; None where it is undefined."""
    score = scores[metric.name]
    if score is None:
        return None
    return ability(
        float(score), higher_is_better=metric.higher_is_better, guess=metric.chance
    )


def left_of(metric: Metric, before: Scores, after: Scores) -> float:
    """Share of an ability that is left; NaN where there was none before."""
    one, other = ability_of(metric, before), ability_of(metric, after)
    if one is None or other is None or not one > 0:
        return math.nan
    return other / one
