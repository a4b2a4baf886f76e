"""The pruned share at which the concept is gone and the rest is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitcut.storage.errors import UserError

REMAINING = 0.1
"""Share of the concept's ability that may remain; of an F1 score of 1 this is .10."""


@dataclass(frozen=True)
class Pruned:
    """What a cut of one share leaves on the split `tune`, without retraining."""

    share: float
    concept: float
    """Of the base model's ability (`relearning.recovery.ability`), 1: all of it; NaN
    where the base model has none."""
    retain: float
    """The same of the rest; NaN where there is none (a corpus with one type)."""


@dataclass(frozen=True)
class Choice:
    """A share, and why it was chosen."""

    share: float
    reason: str


def specificity(pruned: Pruned) -> float:
    """Share of the concept's ability that is lost minus that of the rest.

    Where there is no rest, or the base model cannot do it, its loss is 0.
    """
    lost_of_rest = 0.0 if math.isnan(pruned.retain) else 1 - pruned.retain
    return 1 - pruned.concept - lost_of_rest


def concept_specific(scan: Sequence[Pruned]) -> Choice:
    """The smallest share that leaves at most `REMAINING` of the concept's ability.

    Where no share does so, the share with the largest `specificity`.

    Raises:
        UserError: When there is no share.
    """
    if not scan:
        raise UserError("argument scan must hold at least one share, got none")
    by_share = sorted(scan, key=lambda pruned: pruned.share)
    if all(math.isnan(pruned.concept) for pruned in scan):
        why = "the smallest one, for the base model is no better than a guess on tune"
        return Choice(by_share[0].share, why)
    for pruned in by_share:
        if pruned.concept <= REMAINING:
            return Choice(
                pruned.share,
                f"the smallest share that leaves at most {REMAINING:.0%} of the base "
                f"model's ability on tune; it leaves {pruned.concept:.1%}",
            )
    best = max(by_share, key=specificity)
    return Choice(
        best.share,
        "the share with the largest loss of ability on the concept minus loss on the "
        f"rest on tune, for all leave more than {REMAINING:.0%} of the concept",
    )
