"""First-order effects of ablating units: gradients with respect to their gates.

Gated, an activation a becomes z a + (1 - z) a0, with a0 the ablation value. The
derivative of a behaviour M with respect to the gate of unit i is therefore sum over
positions of (a - a0) dM/da: what is lost of M, to first order, when i is ablated. One
forward and one backward pass give it for every unit of every kind of site, from the
very code that applies a mask. For edges this is attribution patching: A. Syed, C. Rager
and A. Conmy (2023), "Attribution Patching Outperforms Automated Circuit Discovery",
https://arxiv.org/abs/2310.10348. P. Michel, O. Levy and G. Neubig (2019), "Are Sixteen
Heads Really Better than One?", https://arxiv.org/abs/1905.10650, take it for attention
heads.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.gating import gated
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Batch, Outputs, Predictions
from circuitcut.training.objectives import margin

Behaviour = Callable[[Outputs], tuple[Tensor, Tensor]]
"""Outputs of a batch -> (weighted sum over its positions, sum of the weights)."""


def position_margin(found: Predictions) -> Float[Tensor, "position"]:
    """Nats by which the answer leads its rivals."""
    return margin(found.logits, found.concept_classes, found.rivals)


def concept_margin(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The concept's margins, each by its weight."""
    found = outputs.concept
    return (found.weights * position_margin(found)).sum(), found.weights.sum()


def concept_likelihood(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Minus the cross-entropy in nats at the concept's positions."""
    found = outputs.concept
    losses = functional.cross_entropy(found.logits, found.targets, reduction="none")
    return -(found.weights * losses).sum(), found.weights.sum()


def gate_gradients(
    subject: Subject, behaviour: Behaviour, keep: Mapping[str, Tensor] | None = None
) -> Scores:
    """Derivative of a behaviour's mean over positions with respect to every gate.

    Sums and weights are collected over all batches before they are divided, so that the
    size of a batch does not matter.

    Args:
        keep: Gates at which the derivative is taken, (n_units,) by site name; None
            opens all of them.

    Returns:
        By site name (n_units,), float64 on the CPU: the units of the behaviour (nats)
        per gate.

    Raises:
        UserError: When no batch holds a position of the behaviour.
    """
    sums = {
        site.name: torch.zeros(site.n_units, dtype=torch.float64)
        for site in subject.sites
    }
    total_weight = 0.0
    with evaluating(subject.model):
        for batch in subject.concept_batches():
            gates = open_gates(subject, keep)
            value, weight = behaviour(gated_outputs(subject, batch, gates))
            for name, gradient in gradients_of(value, gates).items():
                sums[name] += gradient
            total_weight += weight.item()
    subject.check_weight(total_weight, "position of the behaviour")
    return {name: total / total_weight for name, total in sums.items()}


def gated_outputs(
    subject: Subject, batch: Batch, gates: Mapping[str, Tensor]
) -> Outputs:
    """What the task predicts on a batch of the model under gates."""
    with gated(
        subject.model,
        subject.sites,
        gates,
        subject.ablated_at(batch),
        special_ids=subject.special_ids,
    ):
        return subject.task.outputs(subject.model, batch)


def open_gates(subject: Subject, keep: Mapping[str, Tensor] | None = None) -> Scores:
    """Gates that take a gradient, at `keep` or, without it, at 1."""
    if keep is None:
        keep = {site.name: torch.ones(site.n_units) for site in subject.sites}
    dtype = torch.promote_types(subject.dtype, torch.float32)
    return {
        site.name: keep[site.name]
        .detach()
        .to(subject.device, dtype, copy=True)
        .requires_grad_()
        for site in subject.sites
    }


def gradients_of(
    value: Tensor, gates: Mapping[str, Tensor], *, retain_graph: bool = False
) -> Scores:
    """Derivative of a scalar by every gate, zero where it does not depend on it."""
    gradients = torch.autograd.grad(
        value, list(gates.values()), retain_graph=retain_graph, materialize_grads=True
    )
    return {
        name: gradient.double().cpu()
        for name, gradient in zip(gates, gradients, strict=True)
    }
