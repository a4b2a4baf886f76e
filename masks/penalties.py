"""What a mask costs: a price per unit, or a Lagrangian that reaches a count.

Both use the closed-form expected count, whose gradient does not vanish with the gates
as that of a sample does. `break` prices ablated units and `isolate` kept ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.gate import Direction
from circuitcut.masks.mask_set import MaskSet
from circuitcut.storage.errors import UserError


class Price(nn.Module):
    """`price` nats per unit, times the expected number of priced units.

    Args:
        price: Nats per unit, at least 0.
        direction: `break` prices ablated units, `isolate` kept ones.
        ramp_fraction: Share of the run, in [0, 1], over which the price rises linearly
            from 0.

    Raises:
        UserError: When a number lies outside its range.
    """

    def __init__(
        self, price: float, *, direction: Direction, ramp_fraction: float = 0.0
    ):
        super().__init__()
        if not price >= 0.0:
            raise UserError(
                f"argument price must be at least 0 nats per unit, got {price}; the "
                "sign follows from the direction"
            )
        _check_ramp(ramp_fraction)
        self.price = price
        self.direction = direction
        self.ramp_fraction = ramp_fraction

    def forward(self, masks: MaskSet, progress: float) -> Float[Tensor, ""]:
        """Nats to add to the loss at `progress` in [0, 1] of the run."""
        ramp = _ramp(progress, self.ramp_fraction)
        return self.price * ramp * _priced(masks, self.direction)


class Lagrangian(nn.Module):
    """lambda1 (s - t) + lambda2 (s - t)^2, with s the expected share of ablated units.

    Edge pruning and CoFi: the multipliers start at 0 and are *ascended* (give them to
    the optimiser as `maximised`) while the gates descend; t moves linearly from 0 to
    the asked share. Departure: s is the closed form, not a sample.

    Args:
        direction: `break` asks for a number of ablated units, `isolate` of kept ones.
        n_units: Number of gated units.
        count: Asked-for number of units.
        fraction: The same as a share of `n_units`; exactly one of both is given.
        ramp_fraction: Share of the run, in [0, 1], over which t moves.

    Raises:
        UserError: When not exactly one of `count` and `fraction` is given or a number
            lies outside its range.
    """

    def __init__(
        self,
        *,
        direction: Direction,
        n_units: int,
        count: float | None = None,
        fraction: float | None = None,
        ramp_fraction: float = 0.5,
    ):
        super().__init__()
        _check_ramp(ramp_fraction)
        asked = _asked_share(n_units, count, fraction)
        self.direction = direction
        self.ramp_fraction = ramp_fraction
        self.target = asked if direction == "break" else 1.0 - asked
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, masks: MaskSet, progress: float) -> Float[Tensor, ""]:
        """Nats to add to the loss at `progress` in [0, 1] of the run."""
        share = masks.expected_ablated() / masks.n_units
        excess = share - self.target * _ramp(progress, self.ramp_fraction)
        return self.linear * excess + self.quadratic * excess.square()

    def report(self, masks: MaskSet) -> dict[str, float]:
        """Asked and expected number of priced units, and both multipliers."""
        n_ablated = self.target * masks.n_units
        is_break = self.direction == "break"
        return {
            "n_asked": n_ablated if is_break else masks.n_units - n_ablated,
            "n_expected": _priced(masks, self.direction).item(),
            "multiplier_linear": self.linear.item(),
            "multiplier_quadratic": self.quadratic.item(),
        }


def _priced(masks: MaskSet, direction: Direction) -> Tensor:
    is_break = direction == "break"
    return masks.expected_ablated() if is_break else masks.expected_kept()


def _ramp(progress: float, fraction: float) -> float:
    return min(progress / fraction, 1.0) if fraction > 0.0 else 1.0


def _check_ramp(fraction: float) -> None:
    if not 0.0 <= fraction <= 1.0:
        raise UserError(
            f"argument ramp_fraction must lie in [0, 1], got {fraction}; it is a share "
            "of the run"
        )


def _asked_share(n_units: int, count: float | None, fraction: float | None) -> float:
    if count is not None and fraction is None:
        share = count / n_units
    elif fraction is not None and count is None:
        share = fraction
    else:
        raise UserError(
            "a Lagrangian needs exactly one of the arguments count and fraction, got "
            f"count {count} and fraction {fraction}"
        )
    if not 0.0 <= share <= 1.0:
        raise UserError(
            f"the asked-for number must lie between 0 and the {n_units} gated units, "
            f"got {count if fraction is None else fraction}"
        )
    return share
