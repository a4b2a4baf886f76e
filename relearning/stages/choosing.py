"""The pruned share at which the concept is gone and the rest is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitcut.storage.errors import UserError

REMAINING = 0.1
"""Share of the concept's ability that may remain; of an F1 score of 1 this is .10."""


@dataclass(frozen=True)
class Pruned:
    """Main scores on the split `tune` after a cut of one share, without retraining."""

    share: float
    concept: float
    retain: float


@dataclass(frozen=True)
class Choice:
    """A share, and why it was chosen."""

    share: float
    reason: str


def specificity(base: Pruned, pruned: Pruned, *, higher_is_better: bool) -> float:
    """Drop of the concept's score minus drop of the others'.

    Where there are no others (a corpus with one type) their drop is 0.
    """
    sign = 1 if higher_is_better else -1
    lost = sign * (base.concept - pruned.concept)
    lost_of_others = sign * (base.retain - pruned.retain)
    return lost - (0.0 if math.isnan(lost_of_others) else lost_of_others)


def concept_specific(
    base: Pruned, scan: Sequence[Pruned], *, higher_is_better: bool, chance: float = 0.0
) -> Choice:
    """The smallest share that leaves at most `REMAINING` of the concept's ability.

    Ability is the score above a guess. Where no share does so, or the score is a loss,
    the share with the largest `specificity`.

    Raises:
        UserError: When there is no share.
    """
    if not scan:
        raise UserError("argument scan must hold at least one share, got none")
    by_share = sorted(scan, key=lambda pruned: pruned.share)
    if higher_is_better:
        most = chance + REMAINING * max(base.concept - chance, 0.0)
        for pruned in by_share:
            if pruned.concept <= most:
                return Choice(
                    pruned.share,
                    f"the smallest share whose concept score on tune, "
                    f"{pruned.concept:.3f}, is at most {most:.3f}, {REMAINING:.0%} of "
                    "the base model's above a guess",
                )
    best = max(
        by_share,
        key=lambda p: specificity(base, p, higher_is_better=higher_is_better),
    )
    why = "no share leaves so little of the concept" if higher_is_better else "a loss"
    return Choice(
        best.share,
        f"the share with the largest drop of the concept minus drop of the rest on "
        f"tune ({why})",
    )
