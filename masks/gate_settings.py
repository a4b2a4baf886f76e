"""Settings of every gate, as plain data: flags are read before torch is imported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import (
    COUNT_OR_0,
    POSITIVE_UNITS,
    PROBABILITY,
    SCALE,
    SHARE_BELOW_1,
)

Direction = Literal["break", "isolate"]
Penalty = Literal["budget", "price", "lagrangian", "none"]
PriceShape = Literal["linear", "sqrt"]
AblationKind = Literal["zero", "mean", "counterfactual"]
TEMPERATURE = 2 / 3  # beta of the hard-concrete distribution
S = TypeVar("S", bound="BudgetSettings")


@dataclass(frozen=True)
class DirectionSettings:
    """Setting of every gate."""

    direction: Direction = flag(
        "break",
        "break: ablate few units to remove the concept; isolate: keep few units that "
        "alone are enough for the concept",
        decides_defaults=True,
    )
    penalty: Penalty = "none"
    """What keeps the mask sparse; gates with a `budget` are drawn otherwise."""

    recipe: ClassVar[Mapping[str, Any]] = {}
    """Default settings that differ for this gate, by name. The task's default settings
    are for gates with a budget."""

    @classmethod
    def has_threshold(cls, settings: Any) -> bool:
        """True: units with a gate above 0.5 are kept.

        False: the gates rank the units, and the number of ablated units is chosen by
        the scores on the `tune` split.
        """
        del settings
        return True


@dataclass(frozen=True)
class BudgetSettings(DirectionSettings):
    """The range of k, of gates that have a budget."""

    k_min: float = flag(
        6.0,
        "smallest budget drawn, in units (ablated in break, kept in isolate); below 1 "
        "a share of all units",
        within=POSITIVE_UNITS,
        has_own_default=False,
    )
    k_max: float = flag(
        64.0,
        "largest budget drawn, likewise",
        within=POSITIVE_UNITS,
        has_own_default=False,
    )
    opening: float = flag(
        0.0,
        "share of the run during which the budget comes down from all units to its "
        "range (isolate)",
        within=SHARE_BELOW_1,
        has_own_default=False,
    )

    def check_budget(self, n_units: int) -> None:
        """The range of k, in units, lies within the units.

        Raises:
            UserError: When it does not.
        """
        if not 0.0 < self.k_min <= self.k_max:
            raise UserError(
                "arguments k_min and k_max must satisfy 0 < k_min <= k_max, got "
                f"{self.k_min} and {self.k_max}; give the smallest and largest number "
                "of units"
            )
        if not self.k_max < n_units:
            raise UserError(
                f"argument k_max must be below the number of gated units ({n_units}), "
                f"got {self.k_max}; give a smaller k_max or gate more sites"
            )
        if not 0.0 <= self.opening < 1.0:
            raise UserError(
                "argument opening must lie in [0, 1), the share of the run with larger "
                f"budgets, got {self.opening}"
            )

    def budget_of(self, n_ablated: int, n_units: int) -> float:
        """k of a mask that ablates `n_ablated` of `n_units` units.

        Nothing and everything, for which no gates exist, become half a unit.
        """
        k = n_ablated if self.direction == "break" else n_units - n_ablated
        return min(max(float(k), 0.5), n_units - 0.5)

    @property
    def middle(self) -> float:
        """sqrt(k_min * k_max)."""
        return math.sqrt(self.k_min * self.k_max)


@dataclass(frozen=True)
class HardConcreteSettings(BudgetSettings):
    """Settings of hard-concrete gates."""

    keep_prob: float = flag(
        0.99,
        "hard_concrete without a budget: initial P(gate > 0)",
        within=PROBABILITY,
        has_own_default=False,
    )
    power: float = flag(
        1.0,
        "hard_concrete: exponent of the samples; above 1, more samples are near 0",
        within=SCALE,
        has_own_default=False,
    )
    stretch_temperature: float = flag(
        TEMPERATURE,
        "hard_concrete: temperature beta; the smaller, the fewer gates between 0 and 1",
        within=SCALE,
        has_own_default=False,
    )
    stretch_temperature_end: float = flag(
        TEMPERATURE,
        "hard_concrete with a budget: beta in the last fifth of the run",
        within=SCALE,
        has_own_default=False,
    )
    noise_start: float = flag(
        1.0,
        "hard_concrete with a budget: scale of the noise at the first step",
        within=SCALE,
        has_own_default=False,
    )
    noise_end: float = flag(
        0.2,
        "hard_concrete with a budget: its scale in the last fifth of the run",
        within=SCALE,
        has_own_default=False,
    )

    @classmethod
    def has_threshold(cls, settings: Any) -> bool:
        """With a budget the gates are a ranking."""
        return settings.penalty != "budget"


@dataclass(frozen=True)
class SoftTopKSettings(BudgetSettings):
    """Settings of soft top-k gates."""

    temperature_start: float = flag(
        1.0,
        "topk: temperature at the first step",
        within=SCALE,
        has_own_default=False,
    )
    temperature_end: float = flag(
        0.25,
        "topk: temperature in the last fifth of the run",
        within=SCALE,
        has_own_default=False,
    )

    @classmethod
    def has_threshold(cls, settings: Any) -> bool:
        """The gates are a ranking."""
        return False


@dataclass(frozen=True)
class ClampedSettings(DirectionSettings):
    """Settings of clamped gates."""

    round_every: int = flag(
        0,
        "clamped: steps from one rounding of the gates at 0.5 to the next; 0 rounds at "
        "the end alone",
        within=COUNT_OR_0,
        has_own_default=False,
    )

    recipe: ClassVar[Mapping[str, Any]] = {"penalty": "price"}


@dataclass(frozen=True)
class GateSettings(SoftTopKSettings, HardConcreteSettings, ClampedSettings):
    """Settings of all gates."""


SETTINGS: dict[str, type[DirectionSettings]] = {
    "hard_concrete": HardConcreteSettings,
    "topk": SoftTopKSettings,
    "clamped": ClampedSettings,
}
"""The gates of `registry.GATES` by name, each with its settings."""


def in_units(settings: S, n_units: int) -> S:
    """The settings with a range of k in units, made to fit: k_max at most half of them.

    Ends below 1 are shares of `n_units`.
    """
    low, high = (as_units(k, n_units) for k in (settings.k_min, settings.k_max))
    high = min(max(high, 1.0), n_units / 2)
    return replace(settings, k_max=high, k_min=min(low, high / 4))


def as_units(k: float, n_units: int) -> float:
    """k in units; below 1 it is a share of all."""
    return k * n_units if k < 1.0 else k
