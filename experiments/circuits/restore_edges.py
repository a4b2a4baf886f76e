"""The last step of `break` on few edges: each that need not be cut is restored.

Soft gates share a cut out among edges any one of which would do, and a threshold takes
them all. Here every cut edge is restored in turn, the one that the ranking is least
sure of first, and stays where the concept is as broken as before and the rest as well
off: what is left cut is needed for the cut. Where the mask does not break the concept,
further edges are first cut by their rank.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.experiments.circuits.spare_edges import (
    MOST_EXACT,
    has_only_edges,
    tune_examples,
    with_kept,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.models.sites import split_by_site
from circuitcut.tasks.base import Metric
from circuitcut.training.objectives import kl_to_reference

logger = logging.getLogger(__name__)
_SLACK = 1e-3
"""Nats of KL on the rest that a restored edge may cost."""


@dataclass(frozen=True)
class _Cut:
    """What a cut leaves on the examples."""

    margin: float
    """Mean nats by which the concept's answer leads its rivals."""
    ability: float
    """The concept's score above chance."""
    harm: float
    """KL from the uncut model where the concept is not."""


def can_restore_edges(
    mask: FrozenMask, settings: MaskSettings, metric: Metric, n_ablated: int | None
) -> bool:
    """Whether the mask cuts a few edges, of a number that nobody asked for.

    And the concept's score has a floor: of a loss the most is cut that can be afforded.
    """
    few = n_ablated is None and 1 < mask.n_ablated <= MOST_EXACT
    breaks = settings.direction == "break" and metric.higher_is_better
    return breaks and few and has_only_edges(mask)


def with_edges_restored(
    experiment: Experiment, settings: MaskSettings, frozen: Frozen, target: float
) -> Frozen:
    """The mask with all edges that need not be cut, and the ranking that gives it.

    Args:
        frozen: A mask for which `can_restore_edges`, and its ranking.
        target: Share of the uncut model's margin and ability that counts as broken; a
            mask that leaves more may go on leaving as much.
    """
    mask, ranking = frozen.mask, frozen.ranking
    logger.info("restoring edges of the %d that are cut in vain", mask.n_ablated)
    attempt = _Attempts(experiment, settings, mask)
    keep = torch.cat([mask.keep[site.name] for site in mask.sites])
    scores = torch.cat([ranking[site.name] for site in mask.sites])
    order = scores.sort(descending=True, stable=True).indices
    uncut = attempt(torch.ones_like(keep))
    broken = _Cut(target * uncut.margin, target * uncut.ability, math.inf)
    keep, start = _broken(keep, order, attempt, broken)
    limit = _Cut(
        max(start.margin, broken.margin),
        max(start.ability, broken.ability),
        start.harm + _SLACK,
    )
    n_cut = -1
    while n_cut != int((~keep).sum()):
        n_cut = int((~keep).sum())
        for edge in order[~keep[order]].tolist():
            keep[edge] = True
            if keep.all() or not _is_within(attempt(keep), limit):
                keep[edge] = False
    return with_kept(mask, keep, order)


def _broken(
    keep: Tensor, order: Tensor, attempt: "_Attempts", broken: _Cut
) -> tuple[Tensor, _Cut]:
    """The cut and, where it breaks too little, as many edges more as it takes.

    The cut itself where that is too many.
    """
    first = attempt(keep)
    wider, left, n_cut = keep, first, int((~keep).sum())
    while not _is_within(left, broken):
        n_cut = 2 * n_cut
        if n_cut > min(2 * MOST_EXACT, len(order) // 2):
            return keep, first
        wider = keep.clone()
        wider[order[-n_cut:]] = False
        left = attempt(wider)
    return wider, left


def _is_within(cut: _Cut, limit: _Cut) -> bool:
    return (
        cut.margin <= limit.margin
        and cut.ability <= limit.ability
        and cut.harm <= limit.harm
    )


class _Attempts:
    """What cuts do on examples of `tune`."""

    def __init__(
        self, experiment: Experiment, settings: MaskSettings, mask: FrozenMask
    ):
        self.task, self.model = experiment.task, experiment.loaded.model
        self.sites = mask.sites
        self.batch, self.ablated = tune_examples(experiment, settings, mask)
        with torch.no_grad():
            self.uncut = self.task.outputs(self.model, self.batch).retain.logits

    def __call__(self, keep: Tensor) -> _Cut:
        named = split_by_site(keep, self.sites)
        with torch.no_grad(), gated(self.model, self.sites, named, self.ablated):
            outputs = self.task.outputs(self.model, self.batch)
            counts = self.task.counts(self.model, self.batch)
        metric, retain = self.task.concept_metric, outputs.retain
        sums = {name: values.double().sum(0) for name, values in counts.items()}
        score = self.task.summarise(sums)[metric.name]
        harm = 0.0
        if len(retain.weights):
            harm = kl_to_reference(retain.logits, self.uncut, retain.weights).item()
        margin = position_margin(outputs.concept).mean().item()
        return _Cut(margin, score - metric.chance, harm)
