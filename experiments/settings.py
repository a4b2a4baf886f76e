"""Settings of one mask training, each declared once: field, default, flag and help."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from circuitcut.masks.gate_settings import (
    SETTINGS,
    TEMPERATURE,
    AblationKind,
    GateSettings,
    Penalty,
    PriceShape,
)
from circuitcut.storage.atomic import read_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    COUNT_OR_0,
    LEARNING_RATE,
    NOT_NEGATIVE,
    SHARE,
    SHARE_BELOW_1,
    UNITS,
    UNITS_OR_0,
    Range,
)
from circuitcut.storage.reading.typed_fields import check_entries
from circuitcut.training.schedules import Schedule

ConceptObjective = Literal["margin", "ascent", "uniform", "kl", "js"]
RetainObjective = Literal["kl", "cross_entropy", "none"]
SETTINGS_FILE = "settings.json"
"""In a run directory: the resolved settings, which its flags alone do not tell."""
_NOT_YET: dict[str, Any] = {
    "start": "equal",
    "opening": 0.0,
    "stretch_temperature": TEMPERATURE,
    "noise_start": 1.0,
    "noise_end": 1.0,
    "mean_positions": 10**9,
    "round_every": 0,
    "price_shape": "linear",
    "price_start": 0.0,
    "lr_schedule": "late",
}
"""What settings that older runs did not have amount to in them."""


@dataclass(frozen=True)
class MaskSettings(GateSettings):
    """How gates are trained, whatever the task; a gate's own settings stand with it.

    The defaults are those of a real encoder's neurons. Fields with a help text are
    flags of `train_mask`.
    """

    gate: str = flag(
        "hard_concrete",
        f"gate: {', '.join(sorted(SETTINGS))}",
        has_own_default=False,
        decides_defaults=True,
    )
    penalty: Penalty = flag(
        "budget",
        "what keeps a mask sparse: a budget of --k_min to --k_max units in every "
        "sample, a --price a unit, or a Lagrangian towards --target_ablated",
        has_own_default=False,
        decides_defaults=True,
    )
    start: str = flag(
        "equal",
        "scores at the first step: equal, or in the order of an attribution method "
        "(eap_ig, gradient_margin, ...)",
        has_own_default=False,
    )
    ablation: AblationKind = flag(
        "zero", "what replaces an ablated activation", has_own_default=False
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    mean_positions: int = flag(
        16384,
        "positions that suffice for means; of longer splits every n-th example",
        within=UNITS,
    )
    per_position: bool = flag(False, "one mean per position (aligned prompts)")
    positions: Literal["words", "all"] = flag(
        "words",
        "cut at every position, or not at special tokens and a causal model's first "
        "position; edges spare the first position alone",
        has_own_default=False,
    )
    concept_objective: ConceptObjective = flag(
        "margin",
        "margin: the answer's logit below its rivals; ascent: bounded loss ascent per "
        "token; uniform: the answer and its rivals equally likely; kl, js: stay as in "
        "the uncut model, by a divergence without bound or by a bounded one (isolate)",
        has_own_default=False,
    )
    concept_weight: float = flag(
        1.0,
        "weight of the concept objective",
        within=NOT_NEGATIVE,
        has_own_default=False,
    )
    retain_objective: RetainObjective = flag(
        "kl",
        "kl to the uncut model; cross_entropy; none: nothing is retained, and retained "
        "examples are not run (break: the published objective *necessary*)",
        has_own_default=False,
        decides_defaults=True,
    )
    retain_weight: float = flag(
        8.0,
        "weight of the retain objective",
        within=NOT_NEGATIVE,
        has_own_default=False,
    )
    margin_floor: float = flag(
        1.0,
        "margin: nats below the rivals that suffice",
        within=Range(-1000, 1000),
        has_own_default=False,
    )
    token_cap: float = flag(
        3.0,
        "ascent: nats of loss per token that count",
        within=NOT_NEGATIVE,
        has_own_default=False,
    )
    price: float = flag(
        1e-3,
        "nats per expected unit (ablated in break, kept in isolate)",
        within=NOT_NEGATIVE,
        has_own_default=False,
    )
    price_shape: PriceShape = flag(
        "linear",
        "price on the expected units, or on the square roots of each, which resists "
        "the first part of a cut the most",
        has_own_default=False,
    )
    price_start: float = flag(
        0.0,
        "share of the run before the price grows",
        within=SHARE_BELOW_1,
        has_own_default=False,
    )
    target_ablated: float = flag(
        0.0,
        "lagrangian: units to ablate, by the gates and in the finished mask; below 1 a "
        "fraction of all units",
        within=UNITS_OR_0,
        has_own_default=False,
    )
    ramp: float = flag(
        0.6,
        "share of the run over which the price, or a Lagrangian's target, grows",
        within=SHARE,
        has_own_default=False,
    )
    average: float = flag(
        0.05,
        "rate of the running mean of scores; 0: off",
        within=SHARE,
        has_own_default=False,
    )
    n_steps: int = flag(250, "optimiser steps", within=COUNT, has_own_default=False)
    batch_size: int = flag(
        16, "examples a step, of each process", within=BATCH, has_own_default=False
    )
    micro_batch: int | None = flag(
        None,
        "examples in one forward pass, to the same step; default: all, or for edges "
        "what memory has room for",
        within=BATCH,
    )
    lr: float = flag(
        0.1, "learning rate of the gates", within=LEARNING_RATE, has_own_default=False
    )
    lr_schedule: Schedule = flag(
        "late",
        "of the learning rate; late: constant for 60 % of the run, then down to 0",
        has_own_default=False,
    )
    beta2: float = flag(
        0.999,
        "of Adam: how much of the squared gradients' running mean stays in a step",
        within=SHARE_BELOW_1,
        has_own_default=False,
    )
    lr_multipliers: float = flag(
        0.05,
        "learning rate of the Lagrangian's multipliers",
        within=NOT_NEGATIVE,
        has_own_default=False,
    )
    checkpoint_every: int = flag(50, "steps between checkpoints", within=COUNT_OR_0)
    seed: int = 0

    def n_asked(self, n_units: int) -> int | None:
        """Units that a Lagrangian is to ablate; None without a Lagrangian.

        Args:
            n_units: All units, of which `target_ablated` can be a fraction.
        """
        if self.penalty != "lagrangian":
            return None
        target = self.target_ablated
        return round(target if target >= 1 else target * n_units)


def saved_settings(run: Path) -> MaskSettings | None:
    """The settings that a run was started with; None in runs that kept none."""
    path = run / SETTINGS_FILE
    if not path.exists():
        return None
    saved = read_json(path)
    if isinstance(saved, dict):
        constant = {
            "stretch_temperature_end": saved.get("stretch_temperature", TEMPERATURE)
        }
        saved = _NOT_YET | constant | saved
    names = {f.name for f in fields(MaskSettings)}
    if not isinstance(saved, dict) or set(saved) != names:
        found = set(saved) if isinstance(saved, dict) else set()
        differs = sorted(name[:40] for name in found ^ names)
        raise UserError(
            f"{path} must hold the settings of a mask training, one by one; lacking or "
            f"unknown: {', '.join(differs)[:400]}; the run is of another version of "
            "this program"
        )
    check_entries(saved, get_type_hints(MaskSettings), str(path))
    return MaskSettings(**saved)
