"""How many units a trained mask ablates: asked for, by threshold, or by scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from circuitcut.experiments.flags import Experiment
from circuitcut.experiments.gates import MaskSettings, cut_with, special_ids
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_set import MaskSet
from circuitcut.tasks.base import Metric
from circuitcut.tasks.evaluation import evaluate


class HasSize(Protocol):
    """Flags that say how many units are ablated."""

    @property
    def n_ablated(self) -> int | None: ...
    @property
    def concept_target(self) -> float: ...
    @property
    def retain_cost(self) -> float: ...


def freeze(
    config: HasSize,
    experiment: Experiment,
    masks: MaskSet,
    ranking: Mapping[str, Tensor],
    ablated: AblationValues,
    settings: MaskSettings,
    provenance: Mapping[str, Any],
) -> FrozenMask:
    """Threshold or exactly-k; for topk, k is chosen on `tune`.

    Args:
        ranking: Scores by site, (n_units,) each; the lowest are ablated.
    """
    extra: dict[str, Any] = {
        "special_ids": special_ids(experiment, settings),
        "provenance": provenance,
    }
    if config.n_ablated is None and settings.gate != "topk":
        return FrozenMask.from_threshold(masks, ablated, **extra)

    def exactly(k: int) -> FrozenMask:
        return FrozenMask.exactly_k(ranking, masks.sites, ablated, n_ablated=k, **extra)

    if config.n_ablated is not None:
        return exactly(config.n_ablated)
    return exactly(_chosen_k(config, experiment, settings, masks.n_units, exactly))


def _chosen_k(
    config: HasSize,
    experiment: Experiment,
    settings: MaskSettings,
    n_units: int,
    exactly: Callable[[int], FrozenMask],
) -> int:
    """Units to ablate, from a grid over the trained range, by scores on `tune`.

    The fewest that bring the concept to its target (`isolate`: the most that keep it);
    where the concept's score is a loss, which has no floor to reach, the most that cost
    the retained text no more than `--retain_cost`.
    """
    task, model = experiment.task, experiment.loaded.model
    concept, retain = task.concept_metric, task.retain_metric
    base = evaluate(task, model, "tune").scores
    breaking = settings.direction == "break"
    low, high = math.log(settings.k_min), math.log(settings.k_max)
    grid = sorted({round(math.exp(low + i * (high - low) / 11)) for i in range(12)})
    sizes = grid if breaking else [n_units - k for k in grid]

    def score_at(size: int, name: str) -> float:
        cut = cut_with(experiment, exactly(size))
        return evaluate(task, model, "tune", cut=cut).scores[name]

    if breaking and not concept.higher_is_better:
        limit = (1 + config.retain_cost) * base[retain.name]
        return _most_within(limit, sizes, lambda size: score_at(size, retain.name))
    uncut, target = base[concept.name], config.concept_target
    for size in sizes:
        if _reached(concept, score_at(size, concept.name), uncut, target, breaking):
            return size
    return sizes[-1]


def _most_within(
    limit: float, sizes: Sequence[int], loss: Callable[[int], float]
) -> int:
    """The size before the first whose loss is above `limit`; at least the first."""
    affordable = sizes[0]
    for size in sizes:
        if loss(size) > limit:
            break
        affordable = size
    return affordable


def _reached(
    metric: Metric, cut: float, base: float, target: float, breaking: bool
) -> bool:
    """Whether the concept's score has come down to its target; isolate: is still up."""
    if not metric.higher_is_better:
        return cut <= (1 + target) * base
    ability = base - metric.chance
    share = (cut - metric.chance) / ability if ability else 0.0
    return share <= target if breaking else share >= 1 - target
