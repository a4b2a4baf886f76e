"""How faithful circuits of every size are: shares of the margin, and areas under them.

A. Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark",
https://arxiv.org/abs/2504.13151: f(C) = (m(C) - m(none)) / (m(all) - m(none)), m the
concept's mean margin (the logit difference, where there is one rival) with everything
outside the circuit C ablated. Circuits are the top shares of a ranking, and CPR and CMD
the areas under f and under |1 - f|.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from masks.edge_gates import attention_gates, mlp_gates
from models.residual_graph import ResidualGraph
from storage.errors import UserError
from tasks.base import Predictions
from training.objectives import margin

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges that are kept."""
LEAST_RANGE = 1e-3
"""Nats; where less lies between all and none, shares of it say nothing."""


def position_margin(found: Predictions) -> Float[Tensor, "position"]:
    """Nats by which the answer leads its rivals."""
    return margin(found.logits, found.concept_classes, found.rivals)


def faithfulness(value: float, whole: float, empty: float) -> float | None:
    """Share of the way from the empty circuit to the whole model; may exceed 1."""
    between = whole - empty
    return (value - empty) / between if abs(between) >= LEAST_RANGE else None


def areas(
    fractions: Sequence[float], shares: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """CPR and CMD: trapezoids over the fractions, on a linear axis.

    From .001 to 1 a circuit that is always faithful has CPR .999 and CMD 0.

    Raises:
        UserError: When there are fewer than two fractions or they do not rise.
    """
    if len(fractions) < 2 or list(fractions) != sorted(set(fractions)):
        raise UserError(f"fractions must be two or more and rise, got {fractions}")
    if any(share is None for share in shares):
        return None, None
    x = torch.tensor(fractions, dtype=torch.float64)
    f = torch.tensor(shares, dtype=torch.float64)
    cpr, cmd = torch.trapezoid(f, x), torch.trapezoid((1 - f).abs(), x)
    return cpr.item(), cmd.item()


def connected(graph: ResidualGraph, keep: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    """The kept edges that lie on a path from an input to the logits.

    That is what is left when nodes without incoming or without outgoing edges are
    removed until none is found. Keys and values that a group of heads shares count as
    read by each of its heads.
    """
    reached = _reached(graph, keep)
    useful = torch.zeros_like(reached)
    found = keep.clone()
    of_logits = found[-graph.n_writers :]
    of_logits &= reached
    useful |= of_logits
    for layer in reversed(range(graph.n_layers)):
        before, n_heads = graph.n_before(layer), graph.n_heads
        of_mlp = mlp_gates(graph, layer, found)
        of_mlp &= reached[: len(of_mlp)] & useful[before + n_heads]
        useful[: len(of_mlp)] |= of_mlp
        of_heads = attention_gates(graph, layer, found)
        by_reader = _by_reader(graph, useful[before : before + n_heads])
        of_heads &= by_reader[:, None] & reached[:before]
        useful[:before] |= of_heads.any(0)
    return found


def _reached(graph: ResidualGraph, keep: Tensor) -> Tensor:
    """Writers on a path from an input: (writer,)."""
    reached = keep.new_zeros(graph.n_writers)
    reached[: graph.n_inputs] = True
    for layer in range(graph.n_layers):
        before, n_heads = graph.n_before(layer), graph.n_heads
        readers = (attention_gates(graph, layer, keep) & reached[:before]).any(1)
        reached[before : before + n_heads] = _by_head(graph, readers)
        of_mlp = mlp_gates(graph, layer, keep)
        reached[before + n_heads] = (of_mlp & reached[: len(of_mlp)]).any()
    return reached


def _by_head(graph: ResidualGraph, readers: Tensor) -> Tensor:
    """Whether any reader of each head is on: (reader,) -> (head,)."""
    if not graph.apart:
        return readers
    n_heads, n_groups = graph.n_heads, graph.n_kv_heads
    query, key, value = readers.split([n_heads, n_groups, n_groups])
    return query | (key | value).repeat_interleave(n_heads // n_groups)


def _by_reader(graph: ResidualGraph, heads: Tensor) -> Tensor:
    """Whether any head of each reader is on: (head,) -> (reader,)."""
    if not graph.apart:
        return heads
    groups = heads.view(graph.n_kv_heads, -1).any(1)
    return torch.cat([heads, groups, groups])
