"""The last step of `isolate` on edges: those that the circuit can spare are removed.

Gates in training lie between 0 and 1 and hide what a finished mask needs: a norm undoes
the scale of a read, so an edge that is all but closed still works. Here edges of the
finished mask are removed in pieces, halves first and single edges last, from the lowest
of the ranking upwards (`tries.change_in_pieces`). A piece goes where the divergence
from the uncut model rises by less than the price of one edge. The divergence is Jensen
and Shannon's, of at most ln 2 nats: KL would keep edges that do nothing but make the
circuit as unsure as the model is. Conmy et al. (2023), "Towards Automated Circuit
Discovery for Mechanistic Interpretability", https://arxiv.org/abs/2304.14997, remove
single edges from all edges of a model, from the last reader to the first; here the
order and the start are learned, and the number of tries is bounded. Where training
keeps nothing that works, a small graph is searched from all of its edges.
"""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.experiments.circuits.tries import (
    MOST_TRIES,
    Budget,
    budget,
    change_in_pieces,
    cut_by_gates,
    examples_of,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import split_by_site
from circuitcut.tasks.base import Batch, Predictions
from circuitcut.training.objectives import jensen_shannon

logger = logging.getLogger(__name__)
MOST_EXACT = 128
"""Edges, each of which costs a forward pass at least."""
_MOST_SEARCHED = 4096
"""Edges of a graph that is searched from all of them: a larger one leaves too many when
the tries are spent."""
_WORKS = 0.05
"""Share of the loss without any edge, up to which a mask is said to work."""
_MARGIN_COST = 0.05
"""Share of the uncut model's margin that may be lost, unless a flag says otherwise."""


@dataclass(frozen=True)
class _Attempt:
    """What a mask does on the examples."""

    loss: float
    """Divergence from the uncut model, at most ln 2."""
    margin: float
    """Mean nats by which the answer leads its rivals."""


def can_remove_spare_edges(
    mask: FrozenMask, settings: MaskSettings, n_ablated: int | None = None
) -> bool:
    """Whether the mask keeps edges alone, for the concept's sake.

    And not many, where their number was asked for.
    """
    few = n_ablated is None or mask.n_units - mask.n_ablated <= MOST_EXACT
    return settings.direction == "isolate" and has_only_edges(mask) and few


def has_only_edges(mask: FrozenMask) -> bool:
    """Whether edges are all that it may cut."""
    return all(site.kind == "edges" for site in mask.sites)


def without_spare_edges(
    experiment: Experiment,
    settings: MaskSettings,
    frozen: Frozen,
    *,
    n_ablated: int | None = None,
    margin_cost: float = _MARGIN_COST,
) -> Frozen:
    """The mask without the edges that it can spare, and the ranking that gives it.

    Where the mask does not do what the model does, edges are first added by their rank;
    where too many would be needed, they are searched among all edges of a small graph.
    Where that leaves too many the mask stays as it is, with a warning. The model is run
    at most `MOST_TRIES` times, on the concept's examples alone.

    Args:
        frozen: A mask for which `can_remove_spare_edges`, and its ranking.
        n_ablated: Ablate exactly so many in the end; a mask of that size that works
            stays as it is.
        margin_cost: Share of the uncut model's margin that may be lost: each edge may
            cost little, and all together too much.
    """
    with budget("removing spare edges", MOST_TRIES) as tries:
        attempt = _Attempts(experiment, settings, frozen.mask, tries)
        return _without_spare_edges(
            attempt, frozen, settings.price, n_ablated, margin_cost
        )


def _without_spare_edges(
    attempt: "_Attempts",
    frozen: Frozen,
    price: float,
    n_ablated: int | None,
    margin_cost: float,
) -> Frozen:
    mask, ranking = frozen.mask, frozen.ranking
    n_kept = mask.n_units - mask.n_ablated
    logger.info("removing spare edges of the %d that the mask keeps", n_kept)
    whole = attempt(torch.ones(mask.n_units, dtype=torch.bool)).margin
    floor = (1 - margin_cost) * whole if whole > 0 else -math.inf
    limit = _WORKS * attempt(torch.zeros(mask.n_units, dtype=torch.bool)).loss
    scores = torch.cat([ranking[site.name] for site in mask.sites])
    order = scores.sort(descending=True, stable=True).indices
    keep = torch.cat([mask.keep[site.name] for site in mask.sites])
    least = 0 if n_ablated is None else mask.n_units - n_ablated
    start = _working(keep, order, attempt, floor, limit)
    is_searched = start is None and mask.n_units <= _MOST_SEARCHED
    if start is None:
        logger.warning(
            "the mask does not do what the model does, nor do the first %d of its "
            "ranking: %s",
            _widest(n_kept),
            "searching among all edges"
            if is_searched
            else "only edges that cost it nothing are removed",
        )
        start = torch.ones_like(keep) if is_searched else keep
    keep = _reduced(start, order, attempt, _Bounds(price, floor, limit, least))
    if is_searched and int(keep.sum()) > 2 * MOST_EXACT:
        logger.warning(
            "no %d edges were found that do what the model does, so the mask stays as "
            "it was trained: try more --n_steps or --k_max",
            2 * MOST_EXACT,
        )
        return frozen
    return with_kept(mask, keep, order, n_ablated)


def with_kept(
    mask: FrozenMask, keep: Tensor, order: Tensor, n_ablated: int | None = None
) -> Frozen:
    """The mask with other edges kept, and a ranking that has these before all others.

    Args:
        keep: Of all edges.
        order: Of all edges by the ranking so far, the highest first: that of the kept
            and that of the others is as it was.
        n_ablated: Ablate exactly so many, the lowest; None ablates the others.
    """
    place = torch.empty(len(order))
    place[order] = torch.arange(len(order), 0, -1, dtype=place.dtype)
    ranking = split_by_site(place + len(order) * keep, mask.sites)
    kept = FrozenMask.exactly_k(
        ranking,
        mask.sites,
        mask.ablated,
        n_ablated=int((~keep).sum()) if n_ablated is None else n_ablated,
        special_ids=mask.special_ids,
        provenance=mask.provenance,
    )
    return Frozen(kept, ranking)


def _widest(n_kept: int) -> int:
    """Edges up to which a mask that does not work is widened."""
    return max(2 * MOST_EXACT, 2 * n_kept)


def _working(
    keep: Tensor, order: Tensor, attempt: "_Attempts", floor: float, limit: float
) -> Tensor | None:
    """The kept edges and, where they do not work, as many of the next as it takes.

    Where the margin stays below its floor (other edges may hold the answer back), the
    first that do not diverge much; None where too many would be needed.
    """
    n_kept, wider, near = int(keep.sum()), keep, None
    widest = min(_widest(n_kept), len(keep))
    while True:
        result = attempt(wider)
        if result.loss <= limit:
            if result.margin >= floor:
                return wider
            near = wider if near is None else near
        if n_kept >= widest:
            return near
        n_kept = min(max(1, 2 * n_kept), widest)
        wider = keep.clone()
        wider[order[:n_kept]] = True


@dataclass(frozen=True)
class _Bounds:
    """What a piece may cost."""

    price: float
    """Nats of divergence that one piece may add."""
    floor: float
    """Margin below which no piece may go that lowers it."""
    limit: float
    """Divergence above which no piece may go, that of the start aside."""
    least: int
    """Edges that are kept whatever they cost."""


def _reduced(
    start: Tensor, order: Tensor, attempt: "_Attempts", bounds: _Bounds
) -> Tensor:
    """Less the pieces that can go, the lowest ranked first, while tries are left."""
    keep, now = start.clone(), attempt(start)
    limit = max(bounds.limit, now.loss)

    def remove(piece: Tensor) -> bool:
        nonlocal now
        piece = piece[: int(keep.sum()) - bounds.least]
        if not len(piece):
            return False
        keep[piece] = False
        without = attempt(keep)
        bears = without.margin >= min(bounds.floor, now.margin)
        is_cheap = without.loss - now.loss < bounds.price and without.loss <= limit
        if bears and is_cheap:
            now = without
            return True
        keep[piece] = True
        return False

    change_in_pieces(lambda: order[keep[order]].flip(0), remove, attempt.tries)
    return keep


class _Attempts:
    """What masks do where the concept is, on examples of `tune`; one run each."""

    def __init__(
        self,
        experiment: Experiment,
        settings: MaskSettings,
        mask: FrozenMask,
        tries: Budget,
    ):
        self.task, self.model = experiment.task, experiment.loaded.model
        self.mask, self.tries = mask, tries
        self.examples = [
            replace(piece, batch=piece.batch | {"retain": _nowhere(piece.batch)})
            for piece in examples_of(experiment, settings, mask, with_concept=True)
        ]
        with torch.no_grad():
            self.uncut = torch.cat(
                [
                    self.task.outputs(self.model, piece.batch).concept.logits
                    for piece in self.examples
                ]
            )

    def __call__(self, keep: Tensor) -> _Attempt:
        outputs: list[Predictions] = []
        for piece in self.examples:
            cut = cut_by_gates(self.model, self.mask, keep, piece)
            with torch.no_grad(), cut:
                outputs.append(self.task.outputs(self.model, piece.batch).concept)
        self.tries.spend()
        logits = torch.cat([concept.logits for concept in outputs])
        weights = torch.cat([concept.weights for concept in outputs])
        margins = torch.cat([position_margin(concept) for concept in outputs])
        loss = jensen_shannon(logits, self.uncut, weights)
        return _Attempt(loss.item(), margins.mean().item())


def _nowhere(batch: Batch) -> Tensor:
    """No position is retained: no logits are computed there."""
    return torch.zeros_like(batch["retain"])
