"""Arms of a study in stages that differ in seed alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from circuitcut.experiments.stages.seed_study import SeedResult
from circuitcut.relearning.stages.records import StageRecord

Members = list[tuple[SeedResult, list[StageRecord]]]
"""The seeds that have an arm, each with its records of it."""


def groups_of(seeds: Sequence[SeedResult]) -> Iterator[tuple[dict[str, Any], Members]]:
    """What names an arm in all seeds (share, condition, holding), and its records."""
    keys = dict.fromkeys(
        (arm.share, arm.condition, arm.holding) for r in seeds for arm in r.arms
    )
    for share, condition, holding in keys:
        members = [
            (result, records)
            for result in seeds
            for arm, records in result.arms.items()
            if (arm.share, arm.condition, arm.holding) == (share, condition, holding)
        ]
        named = {"share": share, "condition": condition, "holding": holding}
        yield named, members
