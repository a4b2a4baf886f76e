"""The last step of `break` on few edges: those that need not be cut are restored.

Soft gates share a cut out among edges any one of which would do, and a threshold takes
them all. Here cut edges are restored in pieces, halves first and single edges last, the
ones that the ranking is least sure of first (`tries.change_in_pieces`). A piece stays
where the concept is as broken as before and the rest as well off: what is left cut is
needed for the cut. Where the mask does not break the concept, further edges are first
cut by their rank.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.experiments.circuits.spare_edges import (
    MOST_EXACT,
    has_only_edges,
    with_kept,
)
from circuitcut.experiments.circuits.tries import (
    MOST_TRIES,
    Budget,
    Examples,
    budget,
    change_in_pieces,
    cut_by_gates,
    examples_of,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.tasks.base import Metric, Outputs, Predictions
from circuitcut.tasks.evaluation import counts_and_outputs
from circuitcut.training.objectives import kl_to_reference

logger = logging.getLogger(__name__)
_SLACK = 1e-3
"""Nats of KL on the rest that a restored edge may cost."""


@dataclass(frozen=True)
class _Concept:
    """What a cut leaves of the concept on the examples, or what it may leave."""

    margin: float
    """Mean nats by which the concept's answer leads its rivals."""
    ability: float
    """The concept's score above chance."""

    def is_within(self, limit: "_Concept") -> bool:
        """Whether no more is left than `limit` allows."""
        return self.margin <= limit.margin and self.ability <= limit.ability


@dataclass(frozen=True)
class _Cut:
    """What a cut may leave of the concept and do to the rest."""

    concept: _Concept
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

    At most `MOST_TRIES` cuts are tried, each by one run of the model on the concept's
    examples and, where the concept stays broken, one on the others.

    Args:
        frozen: A mask for which `can_restore_edges`, and its ranking.
        target: Share of the uncut model's margin and ability that counts as broken; a
            mask that leaves more may go on leaving as much.
    """
    mask, ranking = frozen.mask, frozen.ranking
    logger.info("restoring edges of the %d that are cut in vain", mask.n_ablated)
    keep = torch.cat([mask.keep[site.name] for site in mask.sites])
    scores = torch.cat([ranking[site.name] for site in mask.sites])
    order = scores.sort(descending=True, stable=True).indices
    with budget("restoring edges", MOST_TRIES) as tries:
        attempts = _Attempts(experiment, settings, mask, tries)
        keep = _restored(keep, order, attempts, target)
    return with_kept(mask, keep, order)


def _restored(
    keep: Tensor, order: Tensor, attempts: "_Attempts", target: float
) -> Tensor:
    """More edges kept, until the cut needs all that are left or tries are spent."""
    uncut = attempts.concept(torch.ones_like(keep))
    broken = _Concept(target * uncut.margin, target * uncut.ability)
    keep, start = _broken(keep, order, attempts, broken)
    limit = _Cut(
        _Concept(max(start.margin, broken.margin), max(start.ability, broken.ability)),
        attempts.harm(keep) + _SLACK,
    )
    keep = keep.clone()

    def restore(piece: Tensor) -> bool:
        keep[piece] = True
        if not keep.all() and attempts.is_within(keep, limit):
            return True
        keep[piece] = False
        return False

    change_in_pieces(lambda: order[~keep[order]], restore, attempts.tries)
    return keep


def _broken(
    keep: Tensor, order: Tensor, attempts: "_Attempts", broken: "_Concept"
) -> tuple[Tensor, "_Concept"]:
    """The cut and, where it breaks too little, as many edges more as it takes.

    The cut itself where that is too many.
    """
    first = attempts.concept(keep)
    wider, left, n_cut = keep, first, int((~keep).sum())
    while not left.is_within(broken):
        n_cut = 2 * n_cut
        if n_cut > min(2 * MOST_EXACT, len(order) // 2):
            return keep, first
        wider = keep.clone()
        wider[order[-n_cut:]] = False
        left = attempts.concept(wider)
    return wider, left


class _Attempts:
    """What cuts do on examples of `tune`."""

    def __init__(
        self,
        experiment: Experiment,
        settings: MaskSettings,
        mask: FrozenMask,
        tries: Budget,
    ):
        self.task, self.model = experiment.task, experiment.loaded.model
        self.mask, self.tries = mask, tries
        self.of_concept, self.others = (
            examples_of(experiment, settings, mask, with_concept=with_concept)
            for with_concept in (True, False)
        )
        with torch.no_grad():
            self.uncut = [
                self.task.outputs(self.model, piece.batch).retain.logits
                for piece in (*self.of_concept, *self.others)
            ]
        self.prompts: list[Outputs] = []
        """Of the last cut, on the concept's examples."""

    def concept(self, keep: Tensor) -> _Concept:
        """One run of the model on the concept's examples."""
        self.prompts = []
        sums: dict[str, Tensor] = {}
        for piece in self.of_concept:
            with torch.no_grad(), cut_by_gates(self.model, self.mask, keep, piece):
                counts, outputs = counts_and_outputs(self.task, self.model, piece.batch)
            self.prompts.append(outputs)
            for name, values in counts.items():
                sums[name] = sums.get(name, 0) + values.double().sum(0)
        self.tries.spend()
        metric = self.task.concept_metric
        ability = self.task.summarise(sums)[metric.name] - metric.chance
        margins = [position_margin(outputs.concept) for outputs in self.prompts]
        return _Concept(torch.cat(margins).mean().item(), ability)

    def harm(self, keep: Tensor) -> float:
        """KL from the uncut model where the concept is not; `concept` came before."""
        retain = [outputs.retain for outputs in self.prompts]
        retain += [self._retain(keep, piece) for piece in self.others]
        weights = torch.cat([predictions.weights for predictions in retain])
        if not len(weights):
            return 0.0
        logits = torch.cat([predictions.logits for predictions in retain])
        return kl_to_reference(logits, torch.cat(self.uncut), weights).item()

    def _retain(self, keep: Tensor, piece: Examples) -> Predictions:
        with torch.no_grad(), cut_by_gates(self.model, self.mask, keep, piece):
            return self.task.outputs(self.model, piece.batch).retain

    def is_within(self, keep: Tensor, limit: _Cut) -> bool:
        """Whether a cut leaves no more; the others run where the concept is broken."""
        concept = self.concept(keep)
        return concept.is_within(limit.concept) and self.harm(keep) <= limit.harm
