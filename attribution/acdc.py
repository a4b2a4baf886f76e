"""ACDC: edges removed one after the other wherever the prediction hardly changes.

A. Conmy, A. Mavor-Parker, A. Lynch, S. Heimersheim and A. Garriga-Alonso (2023),
"Towards Automated Circuit Discovery for Mechanistic Interpretability",
https://arxiv.org/abs/2304.14997, algorithm 1. The readers are visited from the logits
down, and of each reader the edges from its last writer to its first. With H the
circuit so far, an edge is ablated for good if KL(uncut || H without it) - KL(uncut ||
H) is below the threshold, KL being the mean over the positions of the concept.

Departures, so that one search ranks all edges: the sweep is repeated with rising
thresholds, each beginning with the circuit that the one before left; and the rank of an
edge is the sweep in which it falls, then its KL difference there. Of the edges that the
last threshold leaves, those with a larger difference rank higher. A single sweep
(`sweep`) is the published algorithm. Every circuit is run exactly, by the edge engine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.gating import gated
from circuitcut.models.sites import split_by_site
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch
from circuitcut.training.objectives import kl_to_reference

THRESHOLDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Nats, one sweep each."""
logger = logging.getLogger(__name__)

Divergence = Callable[[Bool[Tensor, "edge"]], float]
"""KL in nats of the circuit that keeps these edges from the uncut model."""


def acdc(subject: Subject, thresholds: Sequence[float] = THRESHOLDS) -> Scores:
    """Rank of each edge in the order of removal; the last to fall has the highest.

    Costs a forward pass of every batch for every edge, and one more for every edge that
    a sweep leaves to the next.

    Raises:
        UserError: When no batch has a position of the concept.
    """
    sites = tuple(sorted(subject.sites, key=lambda site: site.layer))
    n_edges = sum(site.n_units for site in sites)
    logger.info(
        "ACDC runs the model for every edge, and again for the edges each sweep "
        "keeps: %s passes of each of %s batches of %s examples in the first sweep",
        *(f"{n:,}" for n in (n_edges, subject.n_batches, subject.size)),
    )
    with evaluating(subject.model), torch.no_grad():
        divergence = KlOfCircuit.of(subject)
        order = removal_order(divergence, n_edges, thresholds)
    ranks = torch.empty(n_edges, dtype=torch.float64)
    ranks[order] = torch.arange(1, n_edges + 1, dtype=torch.float64)
    by_name = split_by_site(ranks, sites)
    return {site.name: by_name[site.name] for site in subject.sites}


def removal_order(
    divergence: Divergence, n_edges: int, thresholds: Sequence[float]
) -> Tensor:
    """Numbers of all edges, the first to be removed first."""
    keep = torch.ones(n_edges, dtype=torch.bool)
    order: list[int] = []
    rises = torch.zeros(n_edges, dtype=torch.float64)
    for threshold in thresholds:
        before = keep.clone()
        rises = sweep(divergence, keep, threshold)
        order += _by_rise(rises, before & ~keep)
    return torch.tensor(order + _by_rise(rises, keep))


def _by_rise(rises: Tensor, chosen: Tensor) -> list[int]:
    """The chosen edges, those whose removal costs least first."""
    edges = chosen.nonzero()[:, 0]
    return edges[rises[edges].argsort(stable=True)].tolist()


def sweep(
    divergence: Divergence, keep: Bool[Tensor, "edge"], threshold: float
) -> Float[Tensor, "edge"]:
    """One pass over the kept edges from the logits down; `keep` is changed in place.

    Args:
        keep: The circuit; edges in the graph's order.
        threshold: Nats that the removal of an edge must cost for it to stay.

    Returns:
        Rise of the divergence when each edge was tried; 0 of edges not kept.
    """
    rises = torch.zeros(len(keep), dtype=torch.float64)
    value = divergence(keep)
    # the graph's order is that of the readers, and of a reader that of its writers
    edges = keep.nonzero()[:, 0].flip(0).tolist()
    for edge in shown(edges, f"ACDC, threshold {threshold:g}", unit="edge"):
        keep[edge] = False
        without = divergence(keep)
        rises[edge] = without - value
        if rises[edge] < threshold:
            value = without
        else:
            keep[edge] = True
    return rises


@dataclass
class KlOfCircuit:
    """Mean KL(uncut || circuit) over the concept's positions of some batches."""

    subject: Subject
    batches: list[tuple[Batch, AblationValues, Tensor]]
    """Inputs, ablation values and logits of the uncut model."""
    total_weight: float

    @classmethod
    def of(cls, subject: Subject) -> "KlOfCircuit":
        """Run the uncut model; its logits and the ablation values stay in memory."""
        batches, total_weight = [], 0.0
        for batch in subject.concept_batches():
            concept = subject.task.outputs(subject.model, batch).concept
            batches.append((batch, subject.ablated_at(batch), concept.logits))
            total_weight += concept.weights.double().sum().item()
        subject.check_weight(total_weight, "position of the concept")
        return cls(subject, batches, total_weight)

    def __call__(self, keep: Bool[Tensor, "edge"]) -> float:
        """Nats a position."""
        subject, total = self.subject, 0.0
        sites = sorted(subject.sites, key=lambda site: site.layer)
        gates = split_by_site(keep, sites)
        for batch, ablated, uncut in self.batches:
            with gated(
                subject.model, sites, gates, ablated, special_ids=subject.special_ids
            ):
                concept = subject.task.outputs(subject.model, batch).concept
            mean = kl_to_reference(concept.logits, uncut, concept.weights)
            total += mean.item() * concept.weights.double().sum().item()
        return total / self.total_weight
