"""Edges of a cut of neurons: which later readers notice that the neurons are ablated.

Attribution patching whose corrupted run is the model under the ablation, on the same
input: A. Syed, C. Rager and A. Conmy (2023), "Attribution Patching Outperforms
Automated Circuit Discovery", https://arxiv.org/abs/2310.10348. With M a measure of the
logits, h_u what writer u writes in the clean run and h'_u under the ablation,

    effect(u -> v) = (h'_u - h_u) . dM / d(input of v),

the first-order change of M where v alone reads h'_u. Summed over the writers it is what
M changes because v notices the ablation; the edges into the logits add up to the change
of M to first order. Writers before the first ablated neuron have no effect. All edges
of a linear model are exact. Departure from EAP: signs are those of ablated minus clean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.masks.edges.gating import edge_gated, record_writers, stack_of
from circuitcut.masks.edges.sites import graph_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

Inputs = Mapping[str, Tensor]
TotalMeasure = Callable[[Tensor, Inputs, Tensor], Tensor]
"""(logits, inputs, positions that count) -> sum of the measure over these positions."""


def neuron_cut_edges(
    model: nn.Module,
    edges: Sequence[Site],
    batches: Iterable[tuple[Inputs, Bool[Tensor, "..."]]],
    corruption: FrozenMask,
    measure: TotalMeasure,
) -> Float[Tensor, "edge"]:
    """Effect of every edge on the mean of a measure, ablated minus clean, in its unit.

    Costs per batch two forward passes that record writers, and one forward and one
    backward pass of the edge engine.

    Args:
        edges: All sites of kind `edges` of the model.
        batches: The model's keyword arguments, and the positions that count, (batch,
            seq).
        corruption: Neurons ablated by any rule; other kinds of unit work as well.

    Returns:
        In the order of the graph, float64.

    Raises:
        UserError: When no position counts.
    """
    graph = graph_at(edges)
    stack = stack_of(model, graph)
    total, n_positions = torch.zeros(graph.n_edges, dtype=torch.float64), 0
    with evaluating(model):
        for inputs, where in batches:
            with corruption.applied(model):
                change = record_writers(stack.model, inputs)
            change.sub_(record_writers(stack.model, inputs))
            keep = change.new_ones(graph.n_edges).requires_grad_()
            with edge_gated(stack, keep, differences=change):
                logits = model(**inputs, use_cache=False).logits
                value = measure(logits, inputs, where)
                (gradient,) = torch.autograd.grad(value, keep)
            total += gradient.double().cpu()
            n_positions += int(where.sum())
    if not n_positions:
        raise UserError("edges need at least one position that counts, got none")
    return total / n_positions


def total_loss(logits: Tensor, inputs: Inputs, where: Tensor) -> Tensor:
    """Sum of -log p of the next tokens, in nats; `where` is False at the last one."""
    log_p = logits[:, :-1].log_softmax(-1)
    of_next = log_p.gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return -of_next[where[:, :-1]].sum()


def total_entropy(logits: Tensor, inputs: Inputs, where: Tensor) -> Tensor:
    """Sum of the entropies of the predictions, in nats."""
    log_p = logits[where].log_softmax(-1)
    return -(log_p.exp() * log_p).sum()


MEASURES: dict[str, TotalMeasure] = {"loss": total_loss, "entropy": total_entropy}


def by_reader(names: Sequence[str], effects: Float[Tensor, "edge"]) -> dict[str, float]:
    """Sum of the effects of the edges into every reader, in the order of the graph.

    Args:
        names: Of the edges, such as `m3->a4.h1<q>`.
    """
    sums: dict[str, float] = {}
    for name, effect in zip(names, effects.tolist(), strict=True):
        reader = name.partition("->")[2]
        sums[reader] = sums.get(reader, 0.0) + effect
    return sums
