"""Means and bootstrap intervals of relearning curves, over seeds and over documents.

Every resample draws documents (clusters of held-out examples) and seeds with
replacement, the same for all conditions, so that ratios are of paired numbers. Scores
are averaged over seeds first and recovery is taken of the averages.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.relearning.records import ConditionRun, Measurement
from circuitcut.relearning.recovery import RecoveryCurve, recovery_curve
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Task

LEVEL = 0.95
UNDEFINED_SHARE = 0.05
"""An interval is not given when more resamples than this leave the value undefined."""

Interval = tuple[float | None, float | None]
Group = tuple[str, str | None, int | None]
"""Name, holding and limit of the conditions that differ in seed alone."""


@dataclass(frozen=True)
class Curves:
    """Scores of one condition; index 0 of `resample` is the data themselves."""

    steps: tuple[int, ...]
    examples: tuple[int, ...]
    seeds: tuple[int, ...]
    concept: np.ndarray
    """(seed, step, resample)"""
    retain: np.ndarray
    unseen_concept: np.ndarray
    distance: np.ndarray
    """(seed, step)"""


def describe(
    task: Task,
    runs: Sequence[ConditionRun],
    *,
    n_resamples: int = 300,
    seed: int = 0,
    minimum: float = 0.05,
) -> dict[str, Any]:
    """Rows, means with intervals and recovery of all runs, as results.json holds them.

    Args:
        task: Turns counts into scores.
        runs: Finished conditions; each group of equal name, holding and limit must have
            the same measured steps.
        n_resamples: Bootstrap resamples.
        seed: Of the bootstrap.
        minimum: Smallest denominator of a recovery, in units of the concept score.

    Returns:
        `rows` (every measurement), `summary` (means over seeds with intervals) and
        `recovery` (of each condition against the uncut model of the same limit, or of
        the largest for one that sees no example of the concept).
    """
    groups: dict[Group, list[ConditionRun]] = {}
    for run in runs:
        condition = run.condition
        key = (condition.name, condition.holding, condition.limit)
        groups.setdefault(key, []).append(run)
    weights = _document_weights(runs[0].measurements[0].clusters, n_resamples, seed)
    curves = {
        key: _curves(task, group, weights)
        for key, group in shown(groups.items(), "intervals", unit="condition")
    }
    return {
        "rows": [row for run in runs for row in _rows(run)],
        "summary": [
            entry
            for key, curve in curves.items()
            for entry in _summary(key, curve, seed)
        ],
        "recovery": [
            _recovery(task, key, curve, uncut, curves[uncut], minimum, seed)
            for key, curve in shown(curves.items(), "recovery", unit="condition")
            if key[0] != "uncut"
            for uncut in [_compared_with(key[2], curves)]
            if uncut in curves
        ],
    }


def _compared_with(limit: int | None, groups: Iterable[Group]) -> Group:
    """The uncut group to compare with a condition of `limit` concept examples."""
    limits = [group[2] for group in groups if group[0] == "uncut"]
    if limit == 0 and limits:
        limit = max(limits, key=lambda n: math.inf if n is None else n)
    return "uncut", None, limit


def interval(values: np.ndarray) -> Interval:
    """The central 95 % of the defined values; None, None if too many are NaN."""
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - UNDEFINED_SHARE) * len(values) or not len(defined):
        return None, None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def _document_weights(
    clusters: Tensor, n_resamples: int, seed: int
) -> Float[Tensor, "resample example"]:
    """How often each example occurs in each resample; row 0 is all ones."""
    documents, of_example = torch.unique(clusters, return_inverse=True)
    n = len(documents)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (n_resamples, n), generator=rng)
    times = torch.zeros(n_resamples, n, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    times = torch.cat([torch.ones(1, n, dtype=torch.float64), times])
    return times[:, of_example]


def _curves(task: Task, group: list[ConditionRun], weights: Tensor) -> Curves:
    first = group[0].measurements
    steps = tuple(measured.step for measured in first)
    if any(tuple(m.step for m in run.measurements) != steps for run in group):
        raise ValueError("runs of one condition must be measured at the same steps")
    concept, retain = task.concept_metric.name, task.retain_metric.name
    shape = (len(group), len(steps), len(weights))
    curves = {name: np.full(shape, np.nan) for name in ("concept", "retain", "unseen")}
    for i, run in enumerate(group):
        for j, measured in enumerate(run.measurements):
            scores = resampled_scores(task, measured, weights)
            curves["concept"][i, j] = scores[concept]
            curves["retain"][i, j] = scores[retain]
            if measured.unseen.any():
                kept = weights * measured.unseen.to(weights)
                unseen = resampled_scores(task, measured, kept)
                curves["unseen"][i, j] = unseen[concept]
    return Curves(
        steps,
        tuple(measured.examples for measured in first),
        tuple(run.condition.seed for run in group),
        curves["concept"],
        curves["retain"],
        curves["unseen"],
        np.array([[m.distance for m in run.measurements] for run in group]),
    )


def resampled_scores(
    task: Task, measured: Measurement, weights: Float[Tensor, "resample example"]
) -> dict[str, np.ndarray]:
    """Every score under each row of example weights, NaN if undefined."""
    names = list(measured.counts)
    table = torch.stack([measured.counts[name].double() for name in names], dim=1)
    sums = weights @ table  # (resample, count)
    scores = [
        task.summarise(dict(zip(names, row.split(1), strict=True))) for row in sums
    ]
    return {name: np.array([row[name] for row in scores], float) for name in scores[0]}


def _over_seeds(values: np.ndarray, seed: int) -> np.ndarray:
    """Mean over seeds, drawn anew in each resample: (seed, step, r) -> (step, r)."""
    n_seeds, _, n_columns = values.shape
    drawn = np.random.default_rng(seed).integers(n_seeds, size=(n_columns, n_seeds))
    drawn[0] = np.arange(n_seeds)
    columns = np.arange(n_columns)[:, None]
    return values[drawn, :, columns].mean(axis=1).T


def _summary(key: Group, curves: Curves, seed: int) -> list[dict[str, Any]]:
    name, holding, limit = key
    means = {
        "concept": _over_seeds(curves.concept, seed),
        "retain": _over_seeds(curves.retain, seed),
        "unseen_concept": _over_seeds(curves.unseen_concept, seed),
    }
    entries = []
    for j, (step, examples) in enumerate(
        zip(curves.steps, curves.examples, strict=True)
    ):
        entry: dict[str, Any] = {
            "condition": name,
            "holding": holding,
            "limit": limit,
            "n_seeds": len(curves.seeds),
            "step": step,
            "examples": examples,
            "distance": float(curves.distance[:, j].mean()),
        }
        for metric, values in means.items():
            entry[metric] = _plain(values[j, 0])
            entry[f"{metric}_interval"] = list(interval(values[j, 1:]))
        entries.append(entry)
    return entries


def _recovery(
    task: Task,
    key: Group,
    cut: Curves,
    uncut_key: Group,
    uncut: Curves,
    minimum: float,
    seed: int,
) -> dict[str, Any]:
    if cut.steps != uncut.steps or cut.seeds != uncut.seeds:
        raise ValueError("cut and uncut runs must share seeds and measured steps")
    cut_means = _over_seeds(cut.concept, seed)
    uncut_means = _over_seeds(uncut.concept, seed)
    resamples = [
        recovery_curve(
            cut.steps,
            cut.examples,
            cut_means[:, r].tolist(),
            uncut_means[:, r].tolist(),
            higher_is_better=task.concept_metric.higher_is_better,
            minimum=minimum,
            guess=task.concept_metric.chance,
        )
        for r in range(cut_means.shape[1])
    ]
    observed, resamples = resamples[0], resamples[1:]
    entry = {
        "condition": key[0],
        "holding": key[1],
        "limit": key[2],
        "uncut_limit": uncut_key[2],
        "n_seeds": len(cut.seeds),
        "minimum": minimum,
        **observed.to_dict(),
    }
    for j, point in enumerate(entry["points"]):
        for kind in ("ratio", "normalised"):
            values = [getattr(curve.points[j], kind) for curve in resamples]
            point[f"{kind}_interval"] = list(interval(np.array(values, float)))
    for kind, entries in entry["reached"].items():
        for k, reached in enumerate(entries):
            reached["step_interval"] = _step_interval(resamples, kind, k)
    entry["area_interval"] = list(
        interval(np.array([curve.area for curve in resamples], float))
    )
    entry["final_gap_interval"] = list(
        interval(np.array([curve.final_gap for curve in resamples], float))
    )
    return entry


def _step_interval(curves: list[RecoveryCurve], kind: str, k: int) -> list[int | None]:
    """Bootstrap interval of a first step; None stands for never."""
    steps = [curve.reached[kind][k].step for curve in curves]
    ordered = sorted(steps, key=lambda step: math.inf if step is None else step)
    tail = (1 - LEVEL) / 2
    low, high = math.floor(tail * len(steps)), math.ceil((1 - tail) * len(steps)) - 1
    return [ordered[low], ordered[high]]


def _rows(run: ConditionRun) -> list[dict[str, Any]]:
    condition = run.condition
    return [
        {
            "condition": condition.name,
            "holding": condition.holding,
            "seed": condition.seed,
            "limit": condition.limit,
            "step": measured.step,
            "examples": measured.examples,
            "distance": measured.distance,
            "scores": {k: _plain(v) for k, v in measured.scores.items()},
            "unseen_scores": {k: _plain(v) for k, v in measured.unseen_scores.items()},
        }
        for measured in run.measurements
    ]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
