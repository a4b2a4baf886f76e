"""Penalties on the number of units: a price per unit, or a Lagrangian with a target.

Both use the expected count in closed form. The gradient of a sampled count is zero for
gates at 0 or 1; the gradient of the expected count is not. In the direction `break` the
penalty counts ablated units, in `isolate` kept units.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.gate_settings import Direction, PriceShape
from circuitcut.masks.mask_set import MaskSet
from circuitcut.storage.errors import UserError

_ROOT_SHIFT = 0.01
"""Keeps the slope of the root finite at 0."""


class Price(nn.Module):
    """`price` nats per unit, times the sum of penalised units.

    The sum is that of the expected units, each p in [0, 1], or of sqrt(p + 0.01): the
    square root resists the first part of a cut the most, and a finished one the least.
    Both are of Li, Davies & Nadeau (2023), "Circuit Breaking",
    https://arxiv.org/abs/2309.05973: the sum for toxicity, the root for digits.

    Args:
        price: Nats per unit, at least 0.
        direction: `break` penalises ablated units, `isolate` kept units.
        start_fraction: Share of the run, in [0, 1), that has no price.
        ramp_fraction: Share of the run, in [0, 1], during which the price then rises
            linearly from 0.
        shape: `linear` or `sqrt`.

    Raises:
        UserError: When a number is outside its range.
    """

    def __init__(
        self,
        price: float,
        *,
        direction: Direction,
        start_fraction: float = 0.0,
        ramp_fraction: float = 0.0,
        shape: PriceShape = "linear",
    ):
        super().__init__()
        if not price >= 0.0:
            raise UserError(
                f"argument price must be at least 0 nats per unit, got {price}; the "
                "sign follows from the direction"
            )
        _check_ramp(ramp_fraction)
        if not 0.0 <= start_fraction < 1.0:
            raise UserError(
                f"argument price_start must lie in [0, 1), got {start_fraction}; it is "
                "the share of the training steps that has no price"
            )
        self.price = price
        self.direction = direction
        self.start_fraction = start_fraction
        self.ramp_fraction = ramp_fraction
        self.shape = shape

    def forward(self, masks: MaskSet, progress: float) -> Float[Tensor, ""]:
        """Nats to add to the loss at `progress` in [0, 1] of the run."""
        ramp = _ramp(progress - self.start_fraction, self.ramp_fraction)
        return self.price * ramp * self._penalised(masks)

    def _penalised(self, masks: MaskSet) -> Tensor:
        if self.shape == "linear":
            return _penalised_count(masks, self.direction)
        kept = torch.cat(list(masks.keep_probs().values()))
        penalised = 1.0 - kept if self.direction == "break" else kept
        return (penalised + _ROOT_SHIFT).sqrt().sum()


class Lagrangian(nn.Module):
    """lambda1 e + lambda2 e^2, with e = (s - t) / min(T, 1 - T) the relative excess.

    s is the expected share of ablated units, T the target share, and t moves linearly
    from 0 to T. As in Edge Pruning and CoFi the multipliers start at 0 and are trained
    by gradient ascent (give them to the optimiser as `maximised`), the gates by
    gradient descent. Departures: s is in closed form, not a sample, and the excess is
    relative to the smaller of both target counts, at least one unit. With s - t itself,
    a multiplier of 1 nat is a price of 1 / n_units nats per unit: for few units among
    many the multipliers do not reach the price that is needed within a run.

    Args:
        direction: `break` has a target for ablated units, `isolate` for kept units.
        n_units: Number of gated units.
        count: Target number of units.
        fraction: Target share of `n_units`; give either `count` or `fraction`.
        ramp_fraction: Share of the run, in [0, 1], during which t moves.

    Raises:
        UserError: When both or none of `count` and `fraction` are given, or a number is
            outside its range.
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
        share = _target_share(n_units, count, fraction)
        self.direction = direction
        self.ramp_fraction = ramp_fraction
        self.target = share if direction == "break" else 1.0 - share
        self.scale = max(min(share, 1.0 - share), 1.0 / n_units)
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, masks: MaskSet, progress: float) -> Float[Tensor, ""]:
        """Nats to add to the loss at `progress` in [0, 1] of the run."""
        share = masks.expected_ablated() / masks.n_units
        excess = share - self.target * _ramp(progress, self.ramp_fraction)
        excess = excess / self.scale
        return self.linear * excess + self.quadratic * excess.square()

    def report(self, masks: MaskSet) -> dict[str, float]:
        """Target and expected number of penalised units, and both multipliers."""
        n_ablated = self.target * masks.n_units
        is_break = self.direction == "break"
        return {
            "n_asked": n_ablated if is_break else masks.n_units - n_ablated,
            "n_expected": _penalised_count(masks, self.direction).item(),
            "multiplier_linear": self.linear.item(),
            "multiplier_quadratic": self.quadratic.item(),
        }


def _penalised_count(masks: MaskSet, direction: Direction) -> Tensor:
    is_break = direction == "break"
    return masks.expected_ablated() if is_break else masks.expected_kept()


def _ramp(progress: float, fraction: float) -> float:
    if progress < 0.0:
        return 0.0
    return min(progress / fraction, 1.0) if fraction > 0.0 else 1.0


def _check_ramp(fraction: float) -> None:
    if not 0.0 <= fraction <= 1.0:
        raise UserError(
            f"argument ramp_fraction must lie in [0, 1], got {fraction}; it is a share "
            "of the training steps"
        )


def _target_share(n_units: int, count: float | None, fraction: float | None) -> float:
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
            f"the target number must lie between 0 and the {n_units} gated units, "
            f"got {count if fraction is None else fraction}"
        )
    return share
