"""Integrated gradients over the inputs (EAP-IG), for all edges of the residual graph.

EAP-IG-inputs: M. Hanna, S. Pezzelle and Y. Belinkov (2024), "Have Faith in
Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
https://arxiv.org/abs/2403.17806. The score of the edge u -> v is

    (h_u(x) - a_u) . mean over k of dM / d(input of v) at e_k,

where h_u - a_u is the difference that the ablation of u removes, and e_k = a_e +
(k + 1/2) / n (e - a_e), k = 0 ... n - 1, are input embeddings between the ablation
value a_e and the embedding e. The gradient at e alone gives attribution patching
(`gate_gradients`). No edge is cut in these runs, so that one forward and one backward
pass score all edges. Departure: midpoints instead of k / n; their error is of order
1 / n^2, and no run has an embedding of zero, at which norms have no direction.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.attribution.gate_gradients import concept_margin, gradients_of
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.edges.gating import (
    EdgeStack,
    edge_gated,
    record_writers,
    stack_of,
)
from circuitcut.masks.edges.sites import graph_at, modules_and_edges, writer_values
from circuitcut.models.spared import FIRST_POSITION, first_positions
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Batch

N_STEPS = 5


def eap_ig(subject: Subject, n_steps: int = N_STEPS) -> Scores:
    """Estimated decrease of the margin, in nats, when an edge is ablated.

    Cost per batch: `n_steps` forward and backward passes, and one forward pass to
    record the writers (one more for counterfactual ablation values).

    Raises:
        UserError: When no batch has a position of the concept.
    """
    _, sites = modules_and_edges(subject.sites)
    graph = graph_at(sites)
    stack = stack_of(subject.model, graph)
    sums = torch.zeros(graph.n_edges, dtype=torch.float64)
    total_weight = 0.0
    with evaluating(subject.model):
        for batch in subject.concept_batches():
            differences = clean_minus_ablated(subject, stack, batch)
            for step in range(n_steps):
                keep = differences.new_ones(graph.n_edges).requires_grad_()
                shift = ((step + 0.5) / n_steps - 1) * differences[0]
                with (
                    input_moved(stack, shift),
                    edge_gated(stack, keep, differences=differences),
                ):
                    outputs = subject.task.outputs(subject.model, batch)
                    value, weight = concept_margin(outputs)
                    sums += gradients_of(value, {"all": keep})["all"]
            total_weight += weight.item()
    subject.check_weight(total_weight, "position of the concept")
    levels = [graph.n_edges_at(layer) for layer in range(graph.n_layers + 1)]
    scores = (sums / (n_steps * total_weight)).split(levels)
    return {site.name: scores[site.layer] for site in sites}


def clean_minus_ablated(
    subject: Subject, stack: EdgeStack, batch: Batch
) -> Float[Tensor, "writer batch seq d_model"]:
    """Output of every writer on the clean input minus its ablation value."""
    _, sites = modules_and_edges(subject.sites)
    written = record_writers(stack.model, subject.task.inputs(batch))
    ablated = subject.ablated_at(batch)
    if ablated.kind != "zero":
        values = writer_values(sites[-1], ablated.values[sites[-1].name])
        written.sub_(values.to(written)[:, :, : written.shape[2]])
    if FIRST_POSITION in subject.special_ids:
        first = first_positions(batch["input_ids"], batch.get("attention_mask"))
        written[:, torch.arange(len(first), device=first.device), first] = 0.0
    return written


@contextmanager
def input_moved(stack: EdgeStack, by: Tensor) -> Iterator[None]:
    """Add `by` to the residual stream at the input of the first block."""

    def move(
        _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + by, *args[1:]), dict(kwargs)
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + by}

    first = stack.model.blocks[0]
    handle = first.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
