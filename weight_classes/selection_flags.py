"""Which neurons are ablated and how, as plain data: flags are read before torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from circuitcut.masks.neurons.rule import (
    CONDITIONS,
    EVERYWHERE,
    QUADRANTS,
    WITH_THETA,
    check_condition,
    check_positions,
    check_theta,
)
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    COUNT_OR_0,
    FINITE,
    POSITIVE_SHARE,
    PROBABILITY,
    SHARE,
    UNITS,
)
from circuitcut.weight_classes.names import CLASSES, class_named
from circuitcut.weight_classes.settings import TAU, Convention

Take = Literal["drawn", "most_frequent", "least_frequent"]
TOLERANCE = 0.05


@dataclass(frozen=True)
class ChoiceFlags:
    """Which neurons of which classes."""

    headings: ClassVar[Headings] = {
        "neurons": (
            *("classes", "n_ablated", "fraction", "as_many_as", "take", "tolerance"),
            *("tau", "convention"),
        )
    }

    classes: list[str] = flag(
        [],
        "classes whose neurons are ablated: "
        + ", ".join(name.replace(" ", "_") for name in CLASSES),
    )
    n_ablated: int | None = flag(
        None, "only so many of them, chosen by --take", within=UNITS
    )
    fraction: float | None = flag(
        None, "only this share of them, chosen by --take", within=POSITIVE_SHARE
    )
    as_many_as: str | None = flag(
        None, "only as many of them as this class has, chosen by --take"
    )
    take: Take = flag(
        "drawn",
        "which of them: drawn with --seed, or those that are on at most or fewest "
        "tokens (gate above 0; of plain neurons the activation)",
    )
    tolerance: float = flag(
        TOLERANCE,
        "control by frequency: largest difference of the shares of tokens at which a "
        "neuron and its control are on",
        within=SHARE,
    )
    tau: float = flag(TAU, "threshold of the classes", within=PROBABILITY)
    convention: Convention = flag(
        "folded", "weights with the gain of the norm before the MLP, or raw"
    )

    def check_choice(self) -> None:
        """Refuse unknown classes and sizes given twice.

        Raises:
            UserError: Naming the flag.
        """
        for name in (*self.classes, *filter(None, [self.as_many_as])):
            if class_named(name) is None:
                raise UserError(
                    f"--classes and --as_many_as must name some of {', '.join(CLASSES)}"
                    f" (with _ for blanks), got {name!r}"
                )
        sizes = {
            "n_ablated": self.n_ablated,
            "fraction": self.fraction,
            "as_many_as": self.as_many_as,
        }
        given = [f"--{name}" for name, value in sizes.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same; give one of them")
        if self.take != "drawn" and not given:
            raise UserError(
                f"--take {self.take} needs --n_ablated, --fraction or --as_many_as: "
                "without one all neurons of the classes are ablated"
            )

    def check_given(self) -> None:
        """Refuse a run without classes.

        Raises:
            UserError: When there are none.
        """
        if not self.classes:
            raise UserError(
                "--classes must name the classes to ablate, for instance weakening"
            )

    @property
    def class_names(self) -> list[str]:
        """The classes by their own names, each once."""
        names = [class_named(name) for name in self.classes]
        return list(dict.fromkeys(name for name in names if name is not None))

    def described(self) -> dict[str, Any]:
        """What results.json says of the choice."""
        return {
            "classes": self.class_names,
            "take": self.take,
            "tolerance": self.tolerance,
            "tau": self.tau,
            "convention": self.convention,
        }


@dataclass(frozen=True)
class RuleFlags:
    """Number and place of an ablation; its kind is a flag of the script."""

    headings: ClassVar[Headings] = {"ablation": ("ablation", "theta", "at_positions")}

    theta: float | None = flag(
        None,
        f"number of --ablation {', '.join(WITH_THETA)}, which need it",
        within=FINITE,
    )
    at_positions: list[int] = flag(
        [],
        "positions in a text, from 0, at which neurons are ablated; default: all",
        within=COUNT_OR_0,
    )

    def check_rule(self, kind: str, conditions: list[str], n_positions: int) -> None:
        """Refuse conditions, numbers and positions that there are not.

        Args:
            n_positions: Tokens of the longest text.

        Raises:
            UserError: Naming the flag.
        """
        check_theta(kind, self.theta, "--theta")
        for condition in conditions:
            check_condition(condition, "--when")
        check_positions(tuple(self.at_positions), n_positions, "--at_positions")


WHEN_HELP = (
    "signs of the gate before the non-linearity and of the activation after the "
    f"refactor at which neurons are ablated: {EVERYWHERE} (tokens), "
    f"{', '.join(CONDITIONS[1:5])} or a quadrant ({', '.join(QUADRANTS)})"
)
