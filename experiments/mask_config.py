"""Flags of a mask training: the task's, the units', and all of `MaskSettings`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from circuitcut.attribution.abilities import ABILITIES
from circuitcut.experiments.flags import UnitsConfig
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.gate_settings import SETTINGS
from circuitcut.models.names import UNIT_KINDS
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag, flags_of
from circuitcut.storage.flag_ranges import (
    N_BATCHES,
    N_RANDOM,
    NOT_NEGATIVE,
    SHARE,
    UNITS,
    UNITS_OR_0,
)

_SettingsFlags: Any = flags_of(MaskSettings)


@dataclass(frozen=True)
class MaskConfig(UnitsConfig, _SettingsFlags):
    """Flags of one mask training; None takes the task's recipe.

    Raises:
        UserError: When a value is out of range, or two flags contradict each other.
    """

    heading: ClassVar[str] = "training"
    headings: ClassVar[Headings] = {
        "what is cut": (
            *("direction", "ablation", "mean_over", "mean_positions", "per_position"),
            *("positions", "superset"),
        ),
        "freezing": ("n_ablated", "concept_target", "retain_cost", "retain_kl"),
        "baselines": ("attribution", "attribution_batches", "n_random", "curve_sizes"),
    }

    n_ablated: int | None = flag(
        None,
        "freeze exactly this many; default: threshold, or for topk the smallest "
        "number that reaches --concept_target on the tune split (toxicity: the largest "
        "within --retain_cost and --retain_kl)",
        within=UNITS,
    )
    concept_target: float = flag(
        0.05,
        "share of the way from no ability to the uncut score that may remain",
        within=SHARE,
    )
    retain_cost: float = flag(
        0.02,
        "where the concept's score is a loss: most growth of the loss of any kind of "
        "retained text",
        within=NOT_NEGATIVE,
    )
    retain_kl: float | None = flag(
        None,
        "likewise: most KL(uncut || cut) on the retained text, nats a token",
        within=NOT_NEGATIVE,
    )
    superset: Path | None = flag(
        None,
        "train only the units of this run's circuit, those that its mask ablates, or "
        "keeps if it isolates (break: the published objective *covering*)",
    )
    attribution: list[str] = flag(
        [],
        f"baselines cut to the same size: {', '.join(sorted(ABILITIES))}, or none",
    )
    attribution_batches: int | None = flag(
        None,
        "batches of 16 examples over which the baselines' scores are averaged; "
        "default 32, of graphs above 2,000 edges 8",
        within=N_BATCHES,
    )
    n_random: int = flag(3, "random cuts of the same size", within=N_RANDOM)
    curve_sizes: list[int] = flag(
        [], "numbers of ablated units to score as well", within=UNITS_OR_0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choices("--units", self.units, UNIT_KINDS)
        _check_choices("--gate", [self.gate] if self.gate else [], SETTINGS)
        methods = [m for m in self.attribution if m != "none"]
        _check_choices("--attribution", methods, ABILITIES)
        starts = [self.start] if self.start else []
        _check_choices("--start", starts, ["equal", *ABILITIES])
        self._check_pairs_of_flags()

    def _check_pairs_of_flags(self) -> None:
        if self.per_position and self.ablation != "mean":
            raise UserError("--per_position needs --ablation mean")
        if self.penalty == "lagrangian" and not self.target_ablated:
            raise UserError("--penalty lagrangian needs --target_ablated")
        if self.retain_objective == "none" and self.retain_weight:
            raise UserError(
                f"--retain_weight {self.retain_weight:g} needs something to retain: "
                "leave it out, or use --retain_objective kl or cross_entropy"
            )
        keeping = self.concept_objective in ("kl", "js")
        if self.direction == "break" and keeping:
            raise UserError(
                f"--concept_objective {self.concept_objective} keeps the concept: use "
                "--direction isolate"
            )
        if self.direction == "isolate" and self.concept_objective and not keeping:
            raise UserError(
                f"--concept_objective {self.concept_objective} removes the concept: "
                "--direction isolate, which keeps it, needs kl or js"
            )
        if "weights" in self.units and self.ablation == "counterfactual":
            raise UserError(
                "--units weights cannot be ablated with counterfactual values"
            )


def _check_choices(name: str, values: Sequence[str], known: Collection[str]) -> None:
    wrong = [value for value in values if value not in known]
    if wrong:
        raise UserError(f"{name} must be among {sorted(known)}, got {wrong}")
