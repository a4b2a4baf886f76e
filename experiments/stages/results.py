"""results.json of a study in stages, from the records of its seeds alone."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from circuitcut.attribution.words.states import level_of
from circuitcut.experiments.stages.changes import changes, relearned
from circuitcut.experiments.stages.grouping import groups_of
from circuitcut.experiments.stages.seed_study import SeedResult
from circuitcut.models.sites import Site
from circuitcut.relearning.records import ConditionRun
from circuitcut.relearning.stages.arms import Arm, n_pruned
from circuitcut.relearning.stages.comparing import compared_similarity
from circuitcut.relearning.stages.records import StageRecord
from circuitcut.relearning.stages.summary import (
    MEASURES,
    jaccard,
    level_values,
    overlaps,
    top,
)
from circuitcut.relearning.stages.vocabulary import NONE, Vocabulary
from circuitcut.relearning.statistics import describe
from circuitcut.storage.progress import Waiting
from circuitcut.storage.statistics.student_t import mean_and_interval
from circuitcut.tasks.base import Task

N_SHOWN = 20
"""Units of an arm and seed in the table of units that took over."""
Rows = list[dict[str, Any]]


def summarised(
    task: Task,
    sites: Sequence[Site],
    vocabulary: Vocabulary | None,
    seeds: Sequence[SeedResult],
    *,
    seed: int,
) -> dict[str, Any]:
    """Every number of the study; docs/schema.md explains the entries.

    Args:
        sites: Hidden sites, one a level.
        vocabulary: The words that were read; None where they are left out.
        seeds: The finished seeds, with equal arms.
        seed: Of the bootstrap.
    """
    widths = [site.n_units for site in sites]
    levels = [
        {"level": level_of(site), "site": site.name, "n_units": site.n_units}
        for site in sites
    ]
    with Waiting("comparing the stages"):
        return {
            "levels": levels,
            "arms": _arms(seeds, sites),
            "scan": [row for result in seeds for row in result.scan],
            **_measured(task, seeds, seed),
            "rankings": _rankings(seeds, sum(widths)),
            "relearned": relearned(task, seeds),
            "stages": _stages(seeds, widths, vocabulary),
            "changes": changes(seeds, widths, vocabulary),
            "overlap": _overlaps(seeds),
            "similarity": _similarities(seeds),
            "took_over": _took_over(seeds, widths, vocabulary),
        }


def _arms(seeds: Sequence[SeedResult], sites: Sequence[Site]) -> Rows:
    """Every arm, its folder within the run, and what it pruned at each level."""
    rows = []
    for result in seeds:
        for arm, records in result.arms.items():
            pruned = records[0].header["n_pruned"]
            rows.append(
                {
                    **vars(arm),
                    "folder": f"seeds/seed-{result.seed}/arms/{arm.key}",
                    "n_pruned": [pruned.get(site.name, 0) for site in sites],
                }
            )
    return rows


def _shares(seeds: Sequence[SeedResult]) -> list[float]:
    """The retrained shares; 0, that of `uncut`, where nothing else is retrained."""
    shares = {arm.share for arm in seeds[0].arms if arm.condition != "uncut"}
    return sorted(shares) or [0.0]


def _measured(task: Task, seeds: Sequence[SeedResult], seed: int) -> dict[str, Rows]:
    """Rows, summary and recovery of the usual protocol, for every share."""
    tables: dict[str, Rows] = {"rows": [], "summary": [], "recovery": []}
    for share in _shares(seeds):
        runs = [
            ConditionRun(arm.as_condition, [record.measurement() for record in records])
            for result in seeds
            for arm, records in result.arms.items()
            if arm.share in (0.0, share)
        ]
        found = describe(task, runs, seed=seed)
        for name, rows in tables.items():
            rows += [{"share": share, **row} for row in found[name]]
    for row in [*tables["rows"], *tables["summary"]]:
        steps = seeds[0].arms[next(iter(seeds[0].arms))]
        row["stage"] = [r.header["step"] for r in steps].index(row["step"])
    return tables


def _rankings(seeds: Sequence[SeedResult], n_units: int) -> dict[str, Any]:
    """Overlap of the top units of every two rankings of the base model."""
    shares = sorted({row["share"] for result in seeds for row in result.scan})
    overlap = []
    for share in shares:
        n = n_pruned(share, n_units)
        for one, other in combinations(seeds[0].rankings, 2):
            values = [
                jaccard(top(r.rankings[one], n), top(r.rankings[other], n))
                for r in seeds
            ]
            mean, interval = mean_and_interval(values)
            overlap.append(
                {"share": share, "n_compared": n, "one": one, "other": other}
                | {"jaccard": mean, "interval": interval}
            )
    seconds = {
        name: mean_and_interval([r.seconds.get(name) for r in seeds])[0]
        for name in seeds[0].rankings
    }
    return {"names": list(seeds[0].rankings), "seconds": seconds, "overlap": overlap}


def _stages(
    seeds: Sequence[SeedResult], widths: list[int], vocabulary: Vocabulary | None
) -> Rows:
    """Every measure by level at the base model and at each stage, over seeds."""
    is_concept = None if vocabulary is None else vocabulary.is_concept
    base = {"share": 0.0, "condition": "base", "holding": None}
    first = [record.tensors for record in [r.base for r in seeds]]
    rows = _over(base, None, [level_values(t, widths, is_concept, 0) for t in first])
    for named, members in groups_of(seeds):
        n_top = n_pruned(named["share"], sum(widths)) if named["share"] else 0
        for stage in range(len(members[0][1])):
            values = [
                level_values(records[stage].tensors, widths, is_concept, n_top)
                for _, records in members
            ]
            rows += _over(named, stage, values)
    return rows


def _over(named: Mapping[str, Any], stage: int | None, values: list[Rows]) -> Rows:
    """Means and intervals over seeds of one stage's levels."""
    rows = []
    for of_level in zip(*values, strict=True):
        row = {**named, "stage": stage, "n_seeds": len(of_level)}
        row |= {key: of_level[0][key] for key in ("level", "n_units")}
        row["n_left_out"] = mean_and_interval([v["n_left_out"] for v in of_level])[0]
        for measure in MEASURES:
            mean, interval = mean_and_interval([v[measure] for v in of_level])
            row[measure], row[f"{measure}_interval"] = mean, interval
        rows.append(row)
    return rows


def _overlaps(seeds: Sequence[SeedResult]) -> Rows:
    """Overlap of top units with those of the base model and with the pruned ones."""
    rows = []
    for named, members in groups_of(seeds):
        if named["condition"] == "uncut":
            continue
        for stage in range(len(members[0][1])):
            found = [
                overlaps(r.base.tensors, s[stage].tensors, s[stage].tensors["pruned"])
                for r, s in members
            ]
            row = {**named, "stage": stage, "n_compared": found[0]["n_compared"]}
            for key in found[0].keys() - {"n_compared"}:
                mean, interval = mean_and_interval([f[key] for f in found])
                row[key], row[f"{key}_interval"] = mean, interval
            rows.append(dict(sorted(row.items())))
    return rows


def _similarities(seeds: Sequence[SeedResult]) -> Rows:
    """Mean similarity of the units' words between every two stages of an arm."""
    if seeds[0].vectors is None:
        return []
    rows = []
    for named, members in groups_of(seeds):
        stages = [None, *range(len(members[0][1]))]
        for one, other in combinations(stages, 2):
            values, counts = [], []
            for result, records in members:
                assert result.vectors is not None
                lists = [
                    (result.base if stage is None else records[stage]).tensors[
                        "top_words"
                    ]
                    for stage in (one, other)
                ]
                similarity = compared_similarity(lists[0], lists[1], result.vectors)
                defined = similarity[~similarity.isnan()]
                counts.append(len(defined))
                values.append(float(defined.mean()) if len(defined) else None)
            mean, interval = mean_and_interval(values)
            rows.append(
                {**named, "one": one, "other": other, "similarity": mean}
                | {"interval": interval, "n_units": mean_and_interval(counts)[0]}
            )
    return rows


def _took_over(
    seeds: Sequence[SeedResult], widths: list[int], vocabulary: Vocabulary | None
) -> Rows:
    """The highest-scoring units of every cut after the last stage, not pruned ones."""
    rows = []
    for result in seeds:
        for arm, records in result.arms.items():
            if arm.condition == "cut":
                rows += _taken(result, arm, records, widths, vocabulary)
    return rows


def _taken(
    result: SeedResult,
    arm: Arm,
    records: list[StageRecord],
    widths: list[int],
    vocabulary: Vocabulary | None,
) -> Rows:
    last, base = records[-1].tensors, result.base.tensors
    scores = torch.where(last["pruned"], -torch.inf, last["score"].double())
    order = scores.sort(descending=True, stable=True).indices[:N_SHOWN].tolist()
    ends = torch.tensor(widths).cumsum(0)
    rows = []
    for place, unit in enumerate(order):
        if last["pruned"][unit]:
            break
        level = int(torch.searchsorted(ends, torch.tensor(unit), right=True))
        row: dict[str, Any] = {
            **{key: value for key, value in vars(arm).items() if key != "condition"},
            "place": place,
            "level": level,
            "unit": unit - int(ends[level] - widths[level]),
            "saliency": [_plain(base["saliency"][unit])]
            + [_plain(record.tensors["saliency"][unit]) for record in records],
            "similarity": _plain(last["similarity"][unit])
            if "similarity" in last
            else None,
        }
        if vocabulary is not None:
            lists = [base, *(record.tensors for record in records)]
            row["words"] = [_words(t["top_words"][unit], vocabulary) for t in lists]
        rows.append(row)
    return rows


def _words(places: Tensor, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """A unit's top words, and which are the concept's."""
    return [
        {"word": vocabulary.words[p], "concept": bool(vocabulary.is_concept[p])}
        for p in places.tolist()
        if p != NONE
    ]


def _plain(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
