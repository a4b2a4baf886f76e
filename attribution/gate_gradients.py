"""First-order effects of ablating units: gradients with respect to their gates.

A gate z turns an activation a into z a + (1 - z) a0, with a0 the ablation value. The
derivative of a behaviour M with respect to the gate of unit i is therefore the sum over
positions of (a - a0) dM/da: the first-order decrease of M when i is ablated. One
forward and one backward pass give it for all units of all kinds of site, with the same
code that applies a mask. For edges this is attribution patching: A. Syed, C. Rager and
A. Conmy (2023), "Attribution Patching Outperforms Automated Circuit Discovery",
https://arxiv.org/abs/2310.10348. P. Michel, O. Levy and G. Neubig (2019), "Are Sixteen
Heads Really Better than One?", https://arxiv.org/abs/1905.10650, use it for attention
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
"""Function from outputs to (weighted sum over positions, sum of the weights)."""


def position_margin(predictions: Predictions) -> Float[Tensor, "position"]:
    """Margin in nats of the answer over its rivals, at each position."""
    return margin(predictions.logits, predictions.concept_classes, predictions.rivals)


def concept_margin(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Weighted sum of the margins in nats at the concept positions, and the weight."""
    predictions, weights = outputs.concept, outputs.concept.weights
    return (weights * position_margin(predictions)).sum(), weights.sum()


def concept_likelihood(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Weighted sum of minus the cross-entropy in nats at the concept positions."""
    predictions, weights = outputs.concept, outputs.concept.weights
    losses = functional.cross_entropy(
        predictions.logits, predictions.targets, reduction="none"
    )
    return -(weights * losses).sum(), weights.sum()


def gate_gradients(
    subject: Subject, behaviour: Behaviour, keep: Mapping[str, Tensor] | None = None
) -> Scores:
    """Derivative of a behaviour's mean over positions with respect to every gate.

    Sums and weights are added over all batches before the division, so that the result
    does not depend on the batch size.

    Args:
        keep: Gates at which the derivative is taken, (n_units,) by site name; None
            means 1 for all gates.

    Returns:
        (n_units,) by site name, float64 on the CPU, in nats per gate.

    Raises:
        UserError: When no batch has a position of the behaviour.
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
    """Predictions of the gated model on a batch."""
    with gated(
        subject.model,
        subject.sites,
        gates,
        subject.ablated_at(batch),
        special_ids=subject.special_ids,
    ):
        return subject.task.outputs(subject.model, batch)


def open_gates(subject: Subject, keep: Mapping[str, Tensor] | None = None) -> Scores:
    """Gates that require a gradient, with the values `keep` (default: 1)."""
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
    """Derivative of a scalar with respect to every gate; zero if it does not depend."""
    gradients = torch.autograd.grad(
        value, list(gates.values()), retain_graph=retain_graph, materialize_grads=True
    )
    return {
        name: gradient.double().cpu()
        for name, gradient in zip(gates, gradients, strict=True)
    }
