"""What is retrained in stages: conditions, ways of holding the cut, and shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitcut.relearning.conditions import HOLDINGS, Condition
from circuitcut.storage.errors import UserError

ARMS = ("cut", "random", "uncut")
"""The conditions of `relearning.conditions` that this study retrains."""


@dataclass(frozen=True)
class Arm:
    """One model that is pruned and retrained in stages."""

    condition: str
    """One of `ARMS`; `random` has the counts of the cut at every level."""
    holding: str | None
    """`lasting`: the mask stays on. `one_shot`: gain and bias are set to zero once, as
    published, and then train. None for `uncut`."""
    share: float
    """Pruned share of all hidden units; 0 for `uncut`."""
    seed: int
    """Of the order of the data, of dropout and of the random cut."""

    @property
    def key(self) -> str:
        """Unique folder name within a seed, e.g. `cut-lasting-0.1`."""
        if self.condition == "uncut":
            return self.condition
        return f"{self.condition}-{self.holding}-{self.share!r}"

    @property
    def as_condition(self) -> Condition:
        """The same condition of the usual relearning protocol."""
        return Condition(self.condition, self.holding, self.seed)


def check_shares(name: str, shares: Sequence[float]) -> None:
    """Refuse shares that are none.

    Raises:
        UserError: When there is none, or one is not above 0 and at most 1.
    """
    wrong = [share for share in shares if not (math.isfinite(share) and 0 < share <= 1)]
    if wrong or not shares:
        raise UserError(
            f"--{name} must be shares of the hidden units, above 0 and at most 1, got "
            f"{wrong or 'none'}"
        )


def n_pruned(share: float, n_units: int) -> int:
    """Number of hidden units that a share prunes.

    Raises:
        UserError: When it prunes no unit, or leaves none.
    """
    n = round(share * n_units)
    if not 0 < n < n_units:
        what = "prunes none" if n <= 0 else "leaves none"
        raise UserError(
            f"a share of {share:g} {what} of the {n_units} hidden units; give shares "
            f"from {1 / n_units:.2g} to {1 - 1 / n_units:.6g}"
        )
    return n


def arms(
    conditions: Sequence[str],
    holdings: Sequence[str],
    shares: Sequence[float],
    seed: int,
) -> list[Arm]:
    """Every combination of one seed, without repeats; `uncut` comes once.

    Raises:
        UserError: When a list is empty or holds an unknown name.
    """
    for name, given, known in (
        ("conditions", conditions, ARMS),
        ("holdings", holdings, HOLDINGS),
    ):
        wrong = [value for value in given if value not in known]
        if wrong or not given:
            raise UserError(
                f"--{name} must be among {', '.join(known)}, got {wrong or 'none'}"
            )
    combined = [
        Arm(name, None, 0.0, seed)
        if name == "uncut"
        else Arm(name, holding, share, seed)
        for share in shares
        for name in conditions
        for holding in holdings
    ]
    return list(dict.fromkeys(combined))
