"""What an ablation makes of a neuron's activation, and where: plain data.

Flags are read from here before torch is imported. The kinds of change and the quadrants
are those of Gerstner & Schuetze (2025), "Understanding Gated Neurons in Transformers
from Their Input-Output Functionality", https://arxiv.org/abs/2505.17936.

A gated neuron adds act(g) u w_out to the residual stream, with g = w_gate . x and u =
w_in . x. Its *activation* is act(g) u after the refactor: times the sign of w_gate .
w_in. All signs, thresholds and constants here are about that activation, since w_in and
w_out can be multiplied by -1 without any change of the function.
"""

import math
from dataclasses import dataclass
from typing import Literal

from circuitcut.storage.errors import UserError

RuleKind = Literal["zero", "mean", "fixed", "cap", "relu", "scale"]
Sign = Literal["any", "+", "-"]
KINDS: dict[RuleKind, str] = {
    "zero": "0",
    "mean": "its mean where the rule acts",
    "fixed": "theta",
    "cap": "min(x, theta)",
    "relu": "max(x, 0)",
    "scale": "theta times x",
}
"""What replaces the activation x of an ablated neuron."""
WITH_THETA = ("fixed", "cap", "scale")
EVERYWHERE = "all"
QUADRANTS = ("gate+/post+", "gate+/post-", "gate-/post+", "gate-/post-")
"""Disjoint, and together everywhere: an exact 0 counts as -."""
CONDITIONS = (EVERYWHERE, "gate+", "gate-", "post+", "post-", *QUADRANTS)


@dataclass(frozen=True)
class Rule:
    """x becomes another activation at the tokens whose signs are those asked for.

    Raises:
        UserError: When `theta` is missing, is given to a kind without one, or is no
            finite number, or a position is negative or named twice.
    """

    kind: RuleKind
    theta: float | None = None
    """The constant of `fixed`, the cap, or the factor of `scale`."""
    gate: Sign = "any"
    """Sign of w_gate . x, before the non-linearity."""
    post: Sign = "any"
    """Sign of the activation."""
    positions: tuple[int, ...] = ()
    """Positions in the text, from 0, at which the rule acts; none: all of them."""

    def __post_init__(self) -> None:
        check_theta(self.kind, self.theta)
        check_positions(self.positions)

    @property
    def is_conditional(self) -> bool:
        """Whether it asks for a sign."""
        return (self.gate, self.post) != ("any", "any")

    @property
    def condition(self) -> str:
        """The signs asked for, as one of `CONDITIONS`."""
        signs = {"gate": self.gate, "post": self.post}
        asked = [f"{name}{sign}" for name, sign in signs.items() if sign != "any"]
        return "/".join(asked) or EVERYWHERE


def rule_of(
    kind: RuleKind,
    theta: float | None = None,
    condition: str = EVERYWHERE,
    positions: tuple[int, ...] = (),
) -> Rule:
    """The rule of a condition by its name.

    Args:
        condition: One of `CONDITIONS`, for instance `gate-/post+`.

    Raises:
        UserError: See `Rule`; also for an unknown condition.
    """
    check_condition(condition)
    signs: dict[str, Sign] = {"gate": "any", "post": "any"}
    for part in condition.split("/") if condition != EVERYWHERE else []:
        signs[part[:-1]] = "+" if part[-1] == "+" else "-"
    return Rule(kind, theta, signs["gate"], signs["post"], tuple(positions))


def check_condition(condition: str, name: str = "condition") -> None:
    """Refuse an unknown condition.

    Raises:
        UserError: When it is none of `CONDITIONS`.
    """
    if condition not in CONDITIONS:
        raise UserError(
            f"{name} must be one of {', '.join(CONDITIONS)}, got {condition!r}"
        )


def check_theta(kind: str, theta: float | None, name: str = "theta") -> None:
    """Refuse a rule without the number that it needs, or with one that it ignores.

    Raises:
        UserError: When it is missing, superfluous or not finite.
    """
    if kind in WITH_THETA and theta is None:
        raise UserError(
            f"ablation {kind} needs {name}, a number: fixed replaces an activation x "
            "by theta, cap by min(x, theta), scale by theta x"
        )
    if kind not in WITH_THETA and theta is not None:
        raise UserError(
            f"{name} belongs to ablation {', '.join(WITH_THETA)}, got it with {kind}; "
            "leave it out"
        )
    if theta is not None and not math.isfinite(theta):
        raise UserError(f"{name} must be a finite number, got {theta}")


def check_positions(
    positions: tuple[int, ...], n_positions: int | None = None, name: str = "positions"
) -> None:
    """Refuse positions that no text has.

    Args:
        n_positions: Tokens of the longest text; None: not known.

    Raises:
        UserError: When one is negative, too large or named twice.
    """
    wrong = [p for p in positions if p < 0 or (n_positions and p >= n_positions)]
    if wrong:
        below = f" and below the {n_positions:,} of a text" if n_positions else ""
        raise UserError(f"{name} must be 0 or above{below}, got {wrong[0]}")
    if len(set(positions)) < len(positions):
        raise UserError(f"{name} must name every position once, got {positions}")
