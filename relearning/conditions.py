"""What is relearned from what: the conditions."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from circuitcut.storage.errors import UserError

HOLDINGS = ("lasting", "one_shot")


CONDITIONS = ("cut", "uncut", "random", "retain_only", "never_learned")
"""`retain_only` is the cut model fine-tuned on examples without the concept;
`never_learned` is a base model that was trained without the concept's examples.
"""
WHOLE = ("uncut", "never_learned")
"""Conditions without a cut, and so without a holding."""


@runtime_checkable
class Mask(Protocol):
    """A `FrozenMask`; flags are checked before torch is imported, hence without it."""

    def random_like(self, seed: int) -> Any:
        """A random mask of the same counts."""
        ...


T = TypeVar("T", bound=Mask)


@dataclass(frozen=True)
class Condition:
    """One fine-tuning run of the protocol."""

    name: str
    """One of `CONDITIONS`."""
    holding: str | None
    """`lasting`: the mask stays on. `one_shot`: written once. None without a cut."""
    seed: int
    """Seeds the order of the data, dropout and the random cut."""
    limit: int | None = None
    """Number of training examples that hold the concept; None is the whole split.

    0 in `retain_only`, and there alone.
    """

    def __post_init__(self) -> None:
        if self.name not in CONDITIONS:
            raise UserError(
                f"argument conditions must be from {sorted(CONDITIONS)}, "
                f"got {self.name!r}"
            )
        if self.holding is not None and self.holding not in HOLDINGS:
            raise UserError(
                f"argument holding must be one of {HOLDINGS}, got {self.holding!r}"
            )
        if self.retains_only:
            if self.limit != 0:
                raise UserError(
                    "argument limit must be 0 in retain_only, which sees no example "
                    f"of the concept, got {self.limit}"
                )
        elif self.limit is not None and self.limit < 1:
            raise UserError(
                f"argument limits must be positive numbers of examples, got "
                f"{self.limit}; leave the limit out for all of them"
            )

    @property
    def retains_only(self) -> bool:
        """Whether it is fine-tuned on examples without the concept."""
        return self.name == "retain_only"

    @property
    def start(self) -> str:
        """The condition whose fresh model is the same."""
        return "cut" if self.retains_only else self.name

    @property
    def key(self) -> str:
        """Unique folder name, e.g. `cut-lasting-16-seed0`."""
        limit = "all" if self.limit is None else str(self.limit)
        parts = (self.name, self.holding, limit, f"seed{self.seed}")
        return "-".join(part for part in parts if part)

    def mask(self, mask: T) -> T | None:
        """The mask this condition starts from; None leaves the model uncut."""
        if self.name in WHOLE:
            return None
        return mask.random_like(self.seed) if self.name == "random" else mask


def conditions(
    names: tuple[str, ...],
    holdings: tuple[str, ...],
    seeds: tuple[int, ...],
    limits: tuple[int | None, ...],
) -> list[Condition]:
    """Every combination, without repeats.

    Uncut models have no holding, and `retain_only` has limit 0 whatever the limits.

    Raises:
        UserError: When a list is empty or holds a name or number that is not allowed.
    """
    for argument, given in {
        "conditions": names,
        "holdings": holdings,
        "seeds": seeds,
        "limits": limits,
    }.items():
        if not given:
            raise UserError(f"argument {argument} must not be empty; give at least one")
    combined = [
        Condition(
            name,
            None if name in WHOLE else holding,
            seed,
            0 if name == "retain_only" else limit,
        )
        for limit in limits
        for seed in seeds
        for name in names
        for holding in holdings
    ]
    return list(dict.fromkeys(combined))
