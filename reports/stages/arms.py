"""The arms of a study in stages: which there are, and which a figure shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.words import condition_name, percent

Results = Mapping[str, Any]
Names = tuple[Any, ...]
"""Share, condition and holding."""


def names(row: Results) -> Names:
    """What names the arm of an entry."""
    return row["share"], row["condition"], row["holding"]


def arms_of(rows: Sequence[Results]) -> list[Names]:
    """Every arm of these entries, in order."""
    return list(dict.fromkeys(map(names, rows)))


def measured(results: Results) -> list[Results]:
    """The entries of `stages` without those of the base model."""
    return [row for row in results["stages"] if row["condition"] != "base"]


def shown_arms(results: Results) -> list[Names]:
    """The arms of the first retrained share, and the uncut model, cuts first."""
    arms = arms_of(measured(results))
    shares = [arm[0] for arm in arms if arm[1] != "uncut"]
    return [arm for arm in arms if arm[1] == "uncut" or arm[0] == shares[0]]


def arm_name(arm: Names, *, share: bool = False) -> str:
    """`cut, mask held`; with `share` also `10.0 % pruned`."""
    name = condition_name({"condition": arm[1], "holding": arm[2]})
    return f"{name}, {percent(arm[0], 1)} pruned" if share and arm[0] else name


def stage_name(stage: int | None) -> str:
    """`base`, `pruned`, `stage 1`, ..."""
    if stage is None:
        return "base"
    return "pruned" if stage == 0 else f"stage {stage}"


def stages_axis(stages: Sequence[int | None]) -> list[str]:
    """Ticks of an axis of stages: `base`, `pruned`, `1`, `2`, ..."""
    return [stage_name(stage).removeprefix("stage ") for stage in stages]
