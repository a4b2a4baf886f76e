"""What retraining changed, paired by seed: scores, levels, and against the random cut.

The statements of Lo et al. (2024), "Large Language Models Relearn Removed Concepts",
https://arxiv.org/abs/2401.01814, are about changes from the base model to a stage.
Departure: the change of the random cut is taken off, which the paper does not do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from circuitcut.experiments.stages.grouping import groups_of
from circuitcut.experiments.stages.seed_study import SeedResult
from circuitcut.relearning.stages.abilities import ability_of
from circuitcut.relearning.stages.comparing import (
    SALIENT,
    saliency_of,
    shares_by_level,
)
from circuitcut.relearning.stages.records import StageRecord
from circuitcut.relearning.stages.summary import level_values
from circuitcut.relearning.stages.vocabulary import Vocabulary
from circuitcut.storage.statistics.student_t import mean_and_interval
from circuitcut.tasks.base import Metric, Task

Rows = list[dict[str, Any]]
OF_LEVELS = ("effect", "concept_units", "polysemantic")
"""Measures of `relearning.stages.summary` whose change at each level is given."""
OF_ALL = ("effect", "concept_units", "polysemantic")
"""Those whose change over all levels together is given."""
LEAST_LOST = 0.05
"""Share of the base model's score that a cut takes at least, for what is regained."""
OTHERS = "salient_share_of_others"
"""The share of salient units where the units that the arm prunes have no rank, neither
at the base model nor at a stage: what is left of a change once it is not due to the
pruned units' own place in the ranking."""


def relearned(task: Task, seeds: Sequence[SeedResult]) -> Rows:
    """How much of the base model's scores each stage has.

    `concept` and `retain` are the ability divided by that of the seed's base model: the
    score above a guess, of a loss the probability per token (`recovery.ability`).
    `regained` is the concept's gain since pruning divided by what pruning took; of a
    cut beside which a random cut was retrained, `beyond_random` is its `regained` minus
    the random cut's. None where a denominator is too small (`LEAST_LOST`).
    """
    groups = list(groups_of(seeds))
    regained = {
        (named["share"], named["condition"], named["holding"], stage): {
            result.seed: _regained(task.concept_metric, result.base, records, stage)
            for result, records in members
        }
        for named, members in groups
        for stage in range(len(members[0][1]))
    }
    sides = {"concept": task.concept_metric, "retain": task.retain_metric}
    rows = []
    for named, members in groups:
        share, condition, holding = named.values()
        for stage in range(len(members[0][1])):
            numbers = {
                side: [_ratio(metric, r.base, s[stage]) for r, s in members]
                for side, metric in sides.items()
            }
            of_arm = regained[share, condition, holding, stage]
            numbers["regained"] = list(of_arm.values())
            random = regained.get((share, "random", holding, stage))
            if condition == "cut" and random is not None:
                numbers["beyond_random"] = [
                    _minus(value, random.get(seed)) for seed, value in of_arm.items()
                ]
            row = {**named, "stage": stage}
            for name, values in numbers.items():
                row[name], row[f"{name}_interval"] = mean_and_interval(values)
            rows.append(row)
    return rows


def _ratio(metric: Metric, base: StageRecord, record: StageRecord) -> float | None:
    before, after = (_ability(metric, r) for r in (base, record))
    if before is None or after is None or before <= 0:
        return None
    return after / before


def _regained(
    metric: Metric, base: StageRecord, records: Sequence[StageRecord], stage: int
) -> float | None:
    """Gain since stage 0 divided by what stage 0 lost."""
    whole, pruned, now = (
        _ability(metric, record) for record in (base, records[0], records[stage])
    )
    if whole is None or pruned is None or now is None:
        return None
    lost = whole - pruned
    return (now - pruned) / lost if lost > LEAST_LOST * whole else None


def _ability(metric: Metric, record: StageRecord) -> float | None:
    return ability_of(metric, record.header["scores"])


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def changes(
    seeds: Sequence[SeedResult], widths: Sequence[int], vocabulary: Vocabulary | None
) -> Rows:
    """Differences from the base model at every stage, measure and level.

    A row has `level`, `measure`, its `value` and `change` and, of a cut beside which a
    random cut was retrained, `beyond_random`: the value minus that of the random cut of
    the same share and way of holding, which is the change minus the random cut's. The
    level None means all levels together; of `salient_share` and `OTHERS` it has the
    mean level of the salient units.
    """
    groups = list(groups_of(seeds))
    values = {
        (named["share"], named["condition"], named["holding"]): {
            (result.seed, stage): _values(
                record, widths, vocabulary, records[0].tensors["pruned"]
            )
            for result, records in members
            for stage, record in [(None, result.base), *enumerate(records)]
        }
        for named, members in groups
    }
    rows = []
    for (share, condition, holding), of_arm in values.items():
        random = values.get((share, "random", holding)) if condition == "cut" else None
        stages = sorted({stage for _, stage in of_arm if stage is not None})
        named = {"share": share, "condition": condition, "holding": holding}
        for stage in stages:
            for level, measure in next(iter(of_arm.values())):
                row = {**named, "stage": stage, "level": level, "measure": measure}
                key = level, measure
                numbers = {
                    "value": _of_seeds(of_arm, None, stage, None, key),
                    "change": _of_seeds(of_arm, of_arm, stage, None, key),
                }
                if random is not None:
                    beyond = _of_seeds(of_arm, random, stage, stage, key)
                    numbers["beyond_random"] = beyond
                for name, (mean, interval) in numbers.items():
                    row[name], row[f"{name}_interval"] = mean, interval
                rows.append(row)
    return rows


Values = Mapping[tuple[int | None, str], float | None]


def _of_seeds(
    values: Mapping[tuple[int, int | None], Values],
    minus: Mapping[tuple[int, int | None], Values] | None,
    stage: int,
    minus_stage: int | None,
    key: tuple[int | None, str],
) -> tuple[float | None, list[Any]]:
    """Mean and interval of a value, or of its difference to another of its seed."""
    found = []
    for (seed, number), of_seed in values.items():
        if number == stage:
            value = of_seed[key]
            if minus is not None:
                value = _minus(value, minus.get((seed, minus_stage), {}).get(key))
            found.append(value)
    return mean_and_interval(found)


def _values(
    record: StageRecord,
    widths: Sequence[int],
    vocabulary: Vocabulary | None,
    pruned: Tensor,
) -> dict[tuple[int | None, str], float | None]:
    """Every measure at every level and, with the level None, over all levels."""
    is_concept = None if vocabulary is None else vocabulary.is_concept
    by_level = level_values(record.tensors, widths, is_concept, 0)
    [whole] = level_values(record.tensors, [sum(widths)], is_concept, 0)
    values: dict[tuple[int | None, str], float | None] = {
        (None, measure): whole[measure] for measure in OF_ALL
    }
    for row in by_level:
        values |= {(row["level"], measure): row[measure] for measure in OF_LEVELS}
    among_others = saliency_of(
        record.tensors["score"], record.tensors["constant"] | pruned
    )
    for measure, saliency in (
        ("salient_share", record.tensors["saliency"]),
        (OTHERS, among_others),
    ):
        rows = shares_by_level(saliency > SALIENT, widths)
        shares = [row["share"] for row in rows]
        values |= {(row["level"], measure): row["share"] for row in rows}
        mean_level = None
        if None not in shares:
            mean_level = sum(level * share for level, share in enumerate(shares))
        values[None, measure] = mean_level
    return values
