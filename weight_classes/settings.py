"""Settings of a classification, as plain data: flags are read before torch."""

from dataclasses import dataclass
from typing import Literal

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import (
    PROBABILITY,
    Range,
    check_flags,
    check_number,
)

Convention = Literal["folded", "raw"]
TAU = 0.5
ALPHA = 0.05


@dataclass(frozen=True)
class WeightSettings:
    """Which weights, thresholds and regions.

    Raises:
        UserError: When a value is out of its range.
    """

    convention: Convention = flag(
        "folded",
        "folded: reading vectors times the gain of the norm before the MLP, and "
        "vectors centred where that is a LayerNorm, as in the published counts; raw: "
        "as stored",
    )
    tau: float = flag(
        TAU,
        "a cosine above it, or below minus it, counts as aligned",
        within=PROBABILITY,
    )
    alpha: float = flag(
        ALPHA,
        "share of chance cosines outside their region, beta and mismatched",
        within=PROBABILITY,
    )
    n_bins: int = flag(
        10, "bins of the cosines from -1 to 1, an even number", within=Range(2, 1000)
    )
    n_pairs: int = flag(
        20_000,
        "mismatched pairs of neurons drawn in every MLP, for their region",
        within=Range(100, 10**7),
    )

    def __post_init__(self) -> None:
        check_flags(self)
        if self.n_bins % 2:
            raise UserError(f"--n_bins must be even, got {self.n_bins}")


def check_tau(tau: float) -> None:
    """Refuse a threshold that no cosine can be above.

    Raises:
        UserError: When it is not between 0 and 1.
    """
    check_number("--tau", tau, PROBABILITY)


def check_alpha(alpha: float) -> None:
    """Refuse a level that is no probability.

    Raises:
        UserError: When it is not between 0 and 1.
    """
    check_number("--alpha", alpha, PROBABILITY)
