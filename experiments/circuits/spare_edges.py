"""The last step of `isolate` on few edges: those that it can spare are removed.

Gates in training lie between 0 and 1 and hide what a finished mask needs: a norm undoes
the scale of a read, so an edge that is all but closed still works. Here the divergence
from the uncut model plus a price for every kept edge is descended on the finished mask:
from the lowest edge of the ranking upwards, one goes where that costs less than the
price. The divergence is Jensen and Shannon's, of at most ln 2 nats: KL would keep edges
that do nothing but make the circuit as unsure as the model is. Conmy et al. (2023),
"Towards Automated Circuit Discovery for Mechanistic Interpretability",
https://arxiv.org/abs/2304.14997, do so from all edges of a model, from the last reader
to the first; here the order and the start are learned. Where training keeps more than
can be tried one by one, or nothing that works, edges go in pieces (in the second case
of the whole graph): half of them, a quarter ..., down to single edges where a piece is
needed, as
Zeller and Hildebrandt (2002), "Simplifying and Isolating Failure-Inducing Input", do
with the input of a program.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.gate_training import counterfactual_values
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.models.sites import split_by_site
from circuitcut.tasks.base import Batch, to_device
from circuitcut.training.objectives import jensen_shannon

logger = logging.getLogger(__name__)
MOST_EXACT = 128
"""Edges, each of which costs a forward pass at least."""
_EXAMPLES = 64
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


Try = Callable[[Tensor], _Attempt]
"""Gates of all edges -> what they do."""


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
    where too many would be needed, they are searched among all, with as many tries as
    there were training steps; where that is too few the mask stays as it is, with a
    warning.

    Args:
        frozen: A mask for which `can_remove_spare_edges`, and its ranking.
        n_ablated: Ablate exactly so many in the end; a mask of that size that works
            stays as it is.
        margin_cost: Share of the uncut model's margin that may be lost: each edge may
            cost little, and all together too much.
    """
    mask, ranking = frozen.mask, frozen.ranking
    n_kept = mask.n_units - mask.n_ablated
    logger.info("removing spare edges of the %d that the mask keeps", n_kept)
    attempt = _attempts(experiment, settings, mask)
    whole = attempt(torch.ones(mask.n_units, dtype=torch.bool)).margin
    floor = (1 - margin_cost) * whole if whole > 0 else -math.inf
    scores = torch.cat([ranking[site.name] for site in mask.sites])
    order = scores.sort(descending=True, stable=True).indices
    keep = torch.cat([mask.keep[site.name] for site in mask.sites])
    least = 0 if n_ablated is None else mask.n_units - n_ablated
    working = _working(keep, order, attempt, floor)
    if working is None:
        logger.warning(
            "the mask does not do what the model does, nor do the first %d of its "
            "ranking: searching among all edges",
            2 * MOST_EXACT,
        )
        working = torch.ones_like(keep)
    if int(working.sum()) > 2 * MOST_EXACT:
        most = settings.n_steps
        working = _searched(working, order, attempt, settings.price, floor, most)
    if int(working.sum()) > 2 * MOST_EXACT:
        logger.warning(
            "no %d edges were found that do what the model does, so the mask stays as "
            "it was trained: try more --n_steps or --k_max",
            2 * MOST_EXACT,
        )
        return frozen
    keep = _spared(working, order, attempt, settings.price, floor, least)
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


def _working(keep: Tensor, order: Tensor, attempt: Try, floor: float) -> Tensor | None:
    """The kept edges and, where they do not work, as many of the next as it takes.

    Where the margin stays below its floor (other edges may hold the answer back), the
    first that do not diverge much; None where too many would be needed.
    """
    limit = _WORKS * attempt(torch.zeros_like(keep)).loss
    n_kept, wider, near = int(keep.sum()), keep, None
    while True:
        result = attempt(wider)
        if result.loss <= limit:
            if result.margin >= floor:
                return wider
            near = wider if near is None else near
        if n_kept >= 2 * MOST_EXACT:
            return near
        n_kept = min(max(1, 2 * n_kept), 2 * MOST_EXACT)
        wider = keep.clone()
        wider[order[:n_kept]] = True


def _spared(
    keep: Tensor, order: Tensor, attempt: Try, price: float, floor: float, least: int
) -> Tensor:
    """Less every edge that costs less than its price, until none does or few are left.

    Args:
        floor: A margin below which none may go that lowers it.
        least: Edges that are kept whatever they cost.
    """
    keep, now, n_kept, before = keep.clone(), attempt(keep), int(keep.sum()), -1
    while before != n_kept:
        before = n_kept
        for edge in order[keep[order]].flip(0).tolist():
            if n_kept <= least:
                return keep
            keep[edge] = False
            without = attempt(keep)
            if _is_spared(without, now, price, floor):
                now, n_kept = without, n_kept - 1
            else:
                keep[edge] = True
    return keep


def _is_spared(without: _Attempt, now: _Attempt, price: float, floor: float) -> bool:
    """Whether what was taken away costs less than one edge, and margin to spare."""
    bears = without.margin >= min(floor, now.margin)
    return bears and without.loss - now.loss < price


def _searched(
    keep: Tensor, order: Tensor, attempt: Try, price: float, floor: float, most: int
) -> Tensor:
    """Less the edges that go in pieces, the lowest ranked first.

    Args:
        most: Tries.
    """
    keep, now = keep.clone(), attempt(keep)
    limit = _WORKS * attempt(torch.zeros_like(keep)).loss
    pieces = [order[keep[order]].flip(0)]
    while pieces and most > 0:
        piece = pieces.pop()
        keep[piece] = False
        without, most = attempt(keep), most - 1
        if without.loss <= limit and _is_spared(without, now, price, floor):
            now = without
            continue
        keep[piece] = True
        if len(piece) > 1:
            low, high = piece.tensor_split(2)
            pieces += [high, low]
    return keep


def _attempts(experiment: Experiment, settings: MaskSettings, mask: FrozenMask) -> Try:
    """What masks do where the concept is, on examples of `tune`."""
    task, model = experiment.task, experiment.loaded.model
    moved, ablated = tune_examples(experiment, settings, mask)
    with torch.no_grad():
        uncut = task.outputs(model, moved).concept.logits

    def attempt(keep: Tensor) -> _Attempt:
        named = split_by_site(keep, mask.sites)
        with torch.no_grad(), gated(model, mask.sites, named, ablated):
            concept = task.outputs(model, moved).concept
        loss = jensen_shannon(concept.logits, uncut, concept.weights)
        return _Attempt(loss.item(), position_margin(concept).mean().item())

    return attempt


def tune_examples(
    experiment: Experiment, settings: MaskSettings, mask: FrozenMask
) -> tuple[Batch, AblationValues]:
    """What masks are tried on, and the values that cut edges take there."""
    batch = experiment.task.batch("tune", 0, size=_EXAMPLES, seed=settings.seed)
    ablated: AblationValues = mask.ablated
    if ablated.kind == "counterfactual":
        ablated = counterfactual_values(experiment, mask.sites, batch)
    return to_device(batch, experiment.accelerator.device), ablated
