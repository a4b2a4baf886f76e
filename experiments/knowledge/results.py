"""results.json of knowledge neurons, from the records of the facts alone."""

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import torch

from circuitcut.attribution.knowledge.unit_sets import Units, of_relation
from circuitcut.experiments.knowledge.facts import KnownFacts
from circuitcut.experiments.knowledge.overlap import (
    by_relation,
    overlap_of_groups,
    overlap_rows,
)
from circuitcut.experiments.knowledge.records import PROMPT_KINDS
from circuitcut.experiments.knowledge.study import FACTORS, UNITS, Study

N_RESAMPLES = 2000
_TAILS = torch.tensor([0.025, 0.975], dtype=torch.float64)
Rows = list[dict[str, Any]]


def neurons(study: Study) -> dict[str, Any]:
    """`neurons.json`: the units of every prompt, fact and relation.

    Lists of `[layer, number]`, as published, with prediction beside gold.
    """
    facts = []
    for record in study.found:
        units = study.refined_sets[record["fact"]]
        facts.append({**record, "refined": listed(units)})
        del facts[-1]["fact"]
    return {
        "facts": facts,
        "relations": {
            relation: listed(units) for relation, units in relations(study).items()
        },
    }


def relations(study: Study) -> dict[str, Units]:
    """The units of every relation."""
    share = study.config.relation_share
    return {name: of_relation(sets, share) for name, sets in by_relation(study).items()}


def summarised(
    study: Study,
    known: KnownFacts,
    effects: Sequence[Any],
    activity: Sequence[Any] = (),
) -> dict[str, Any]:
    """Every number of a run; docs/schema.md explains the entries."""
    sets = list(study.refined_sets.values())
    of_prompts = [units for of_fact in study.coarse_sets.values() for units in of_fact]
    groups = overlap_of_groups(study)
    n_prompts = len(of_prompts)
    right = [
        prompt["predicted"] == prompt["gold"]
        for record in study.found
        for prompt in record["prompts"]
    ]
    return {
        "facts": {
            "n_data": known.n_facts,
            "n_asked": known.n_asked,
            "n_known": known.n_known,
            "n_facts": len(study.numbers),
            "n_prompts": n_prompts,
            "n_relations": len(by_relation(study)),
            "n_right": sum(right),
        },
        "sizes": {
            "coarse": _size(of_prompts),
            "refined": _size(sets),
            "share_of_prompts": study.share,
        },
        "layers": [
            {
                "layer": layer,
                "n_units": width,
                "coarse": _share_of_layer(of_prompts, layer),
                "refined": _share_of_layer(sets, layer),
            }
            for layer, width in enumerate(study.widths)
        ],
        "effects": [
            row
            for on in ("own", "others")
            for units in (*UNITS, *study.orders)
            for operation in FACTORS
            if (row := _row(effects, sets, on, units, operation, study.config.seed))
        ],
        "overlap": overlap_rows(groups),
        "groups": groups,
        "activity": [
            row
            for units in ("refined", "random")
            for prompts in PROMPT_KINDS
            if (row := _activity_row(activity, units, prompts, study.config.seed))
        ],
        "languages": known.languages,
    }


def interval_of(
    values: Sequence[Sequence[float]],
    statistic: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
) -> tuple[float, float]:
    """95 % of a bootstrap over facts.

    Args:
        values: Numbers of every fact.
        statistic: From (resample, fact, number) to (resample,).
    """
    table = torch.tensor(values, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(table), (N_RESAMPLES, len(table)), generator=rng)
    low, high = statistic(table[drawn]).quantile(_TAILS).tolist()
    return low, high


def _row(
    effects: Sequence[Any],
    sets: Sequence[Units],
    on: str,
    units: str,
    operation: str,
    seed: int,
) -> dict[str, Any] | None:
    """The change of a probability, over the facts that have units."""
    measured = [
        (effect[on]["before"], effect[on][f"{units} {operation}"])
        for effect, of_fact in zip(effects, sets, strict=bool(effects))
        if of_fact and effect[on]
    ]
    if not measured:
        return None

    def mean_change(table: torch.Tensor) -> torch.Tensor:
        before, after = table.unbind(-1)
        return (after / before - 1).mean(-1)

    def change_of_mean(table: torch.Tensor) -> torch.Tensor:
        before, after = table.mean(-2).unbind(-1)
        return after / before - 1

    table = torch.tensor(measured, dtype=torch.float64)
    return {
        "on": on,
        "units": units,
        "operation": operation,
        "n_facts": len(measured),
        "before": fmean(before for before, _ in measured),
        "after": fmean(after for _, after in measured),
        "change": float(mean_change(table)),
        "change_interval": interval_of(measured, mean_change, seed),
        "change_of_mean": float(change_of_mean(table)),
        "change_of_mean_interval": interval_of(measured, change_of_mean, seed),
    }


def _activity_row(
    records: Sequence[Any], units: str, prompts: str, seed: int
) -> dict[str, Any] | None:
    """Mean activation of a fact's units on one kind of prompt, over facts."""
    values = [(of[units][prompts],) for of in records if prompts in of[units]]
    if not values:
        return None

    def mean(table: torch.Tensor) -> torch.Tensor:
        return table[..., 0].mean(-1)

    return {
        "units": units,
        "prompts": prompts,
        "n_facts": len(values),
        "mean": fmean(value for (value,) in values),
        "interval": interval_of(values, mean, seed),
    }


def _size(sets: Sequence[Units]) -> dict[str, float]:
    sizes = [len(units) for units in sets]
    return {
        "mean": fmean(sizes),
        "median": float(median(sizes)),
        "most": max(sizes),
        "n_empty": sizes.count(0),
    }


def _share_of_layer(sets: Sequence[Units], layer: int) -> float:
    """Share of all units of the sets, 0 where there are none."""
    n = sum(map(len, sets))
    return sum(unit[0] == layer for units in sets for unit in units) / n if n else 0.0


def listed(units: Units) -> list[list[int]]:
    """As published: `[layer, number]` of every unit, in order."""
    return [list(unit) for unit in sorted(units)]
