"""Trained gates become a FrozenMask: exactly k units, by threshold, or by scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuitcut.experiments.gate_training import (
    ablation_values,
    cut_with,
    special_ids,
)
from circuitcut.experiments.load import Experiment, provenance_of
from circuitcut.experiments.plan import Plan
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES
from circuitcut.models.sites import Site
from circuitcut.models.weights_hash import weights_hash
from circuitcut.tasks.base import Metric
from circuitcut.tasks.evaluation import References, evaluate


@dataclass(frozen=True)
class Frozen:
    """A finished mask and the ranking that gives it."""

    mask: FrozenMask
    ranking: Mapping[str, Tensor]
    """Scores by site, (n_units,) each; the lowest are ablated first."""


def freeze(
    plan: Plan, experiment: Experiment, masks: MaskSet, ablated: AblationValues
) -> Frozen:
    """Exactly as many units as asked for, else by threshold; for topk, k by scores.

    Args:
        masks: The trained gates.
        ablated: What ablated units become.
    """
    ranking = masks.split(masks.ranking().detach().cpu())
    extra: dict[str, Any] = {
        "special_ids": special_ids(experiment, plan.settings),
        "provenance": provenance(experiment, plan.settings),
    }
    n_ablated = plan.size.n_ablated
    if n_ablated is None and GATES[plan.settings.gate].has_threshold(plan.settings):
        return Frozen(FrozenMask.from_threshold(masks, ablated, **extra), ranking)

    def exactly(k: int) -> FrozenMask:
        return FrozenMask.exactly_k(ranking, masks.sites, ablated, n_ablated=k, **extra)

    if n_ablated is None:
        n_ablated = _chosen_k(plan, experiment, masks.n_units, exactly)
    return Frozen(exactly(n_ablated), ranking)


def untrained(
    experiment: Experiment,
    sites: Sequence[Site],
    settings: MaskSettings,
    *,
    n_ablated: int,
) -> FrozenMask:
    """The first units ablated: where cuts by a ranking take values and origin from."""
    return FrozenMask.exactly_k(
        {site.name: torch.zeros(site.n_units) for site in sites},
        sites,
        ablation_values(experiment, sites, settings),
        n_ablated=n_ablated,
        special_ids=special_ids(experiment, settings),
        provenance=provenance(experiment, settings),
    )


def provenance(experiment: Experiment, settings: MaskSettings) -> dict[str, Any]:
    """Where a mask comes from; checked when it is loaded."""
    loaded = experiment.loaded
    return {
        "task": experiment.config.task,
        "model": loaded.name,
        "revision": loaded.revision,
        "weights_hash": weights_hash(loaded.model),
        "gate": settings.gate,
        "direction": settings.direction,
        "seed": settings.seed,
        **provenance_of(experiment, asdict(settings)),
    }


def _chosen_k(
    plan: Plan,
    experiment: Experiment,
    n_units: int,
    exactly: Callable[[int], FrozenMask],
) -> int:
    """Units to ablate, from a grid over the trained range, by scores on `tune`.

    The fewest that bring the concept to its target (`isolate`: the most that keep it);
    where the concept's score is a loss, which has no floor to reach, the most that cost
    no kind of retained text more than `retain_cost`, and all of it `retain_kl`.
    """
    task, model, size = experiment.task, experiment.loaded.model, plan.size
    concept = task.concept_metric
    breaking = plan.settings.direction == "break"
    only_concept = concept.higher_is_better or not breaking
    uncut = evaluate(task, model, "tune", only_concept=only_concept).scores
    reference: bool | References = False
    if not only_concept:
        reference = experiment.references.setdefault("tune", References())
    low, high = math.log(plan.settings.k_min), math.log(plan.settings.k_max)
    grid = sorted({round(math.exp(low + i * (high - low) / 11)) for i in range(12)})
    sizes = grid if breaking else [n_units - k for k in grid]

    def scores_at(k: int) -> dict[str, float]:
        cut = cut_with(experiment, exactly(k))
        return evaluate(
            task,
            model,
            "tune",
            cut=cut,
            reference=reference,
            only_concept=only_concept,
        ).scores

    if not only_concept:
        limits = {"kl_retain": size.retain_kl}
        for name in task.retain_losses:
            if not math.isnan(uncut[name]):  # there is text of this kind
                limits[name] = (1 + size.retain_cost) * uncut[name]
        return _most_within(limits, sizes, scores_at)
    for k in sizes:
        score = scores_at(k)[concept.name]
        if _reached(concept, score, uncut[concept.name], size.concept_target, breaking):
            return k
    return sizes[-1]


def _most_within(
    limits: Mapping[str, float],
    sizes: Sequence[int],
    scores: Callable[[int], Mapping[str, float]],
) -> int:
    """A size within all limits whose next is not, by bisection; at least the first."""
    within, beyond = 0, len(sizes)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        found = scores(sizes[middle])
        if any(found[name] > limit for name, limit in limits.items()):
            beyond = middle
        else:
            within = middle
    return sizes[within]


def _reached(
    metric: Metric, cut: float, base: float, target: float, breaking: bool
) -> bool:
    """Whether the concept's score has come down to its target; isolate: is still up."""
    if not metric.higher_is_better:
        return cut <= (1 + target) * base
    ability = base - metric.chance
    share = (cut - metric.chance) / ability if ability else 0.0
    return share <= target if breaking else share >= 1 - target
