"""Which edges of a circuit connect an input to the logits."""

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
)
from circuitcut.models.residual.graph import ResidualGraph


def connected(graph: ResidualGraph, keep: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    """The kept edges that lie on a path from an input to the logits.

    That is what is left when nodes without incoming or without outgoing edges are
    removed until there is none. Keys and values that a group of heads shares count as
    read by each of its heads.
    """
    return _leading(graph, keep, _reached(graph, keep))


def leading_to_logits(
    graph: ResidualGraph, keep: Bool[Tensor, "edge"]
) -> Bool[Tensor, "edge"]:
    """The kept edges that a path of kept edges joins to the logits.

    Kept edges that are not among them have no effect on the logits.
    """
    return _leading(graph, keep, keep.new_ones(graph.n_writers))


def _leading(graph: ResidualGraph, keep: Tensor, reached: Tensor) -> Tensor:
    """The kept edges on a path from a writer of `reached`, (writer,), to the logits."""
    useful = torch.zeros_like(reached)  # writers on a path to the logits
    connecting = keep.clone()
    of_logits = output_gates(graph, connecting)
    of_logits &= reached
    useful |= of_logits
    for layer in reversed(range(graph.n_layers)):
        before, n_heads = graph.n_before(layer), graph.n_heads
        of_mlp = mlp_gates(graph, layer, connecting)
        of_mlp &= reached[: len(of_mlp)] & useful[before + n_heads]
        useful[: len(of_mlp)] |= of_mlp
        of_heads = attention_gates(graph, layer, connecting)
        by_reader = _by_reader(graph, useful[before : before + n_heads])
        of_heads &= by_reader[:, None] & reached[:before]
        useful[:before] |= of_heads.any(0)
    return connecting


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
    if not graph.separate_qkv:
        return readers
    n_heads, n_groups = graph.n_heads, graph.n_kv_heads
    query, key, value = readers.split([n_heads, n_groups, n_groups])
    return query | (key | value).repeat_interleave(n_heads // n_groups)


def _by_reader(graph: ResidualGraph, heads: Tensor) -> Tensor:
    """Whether any head of each reader is on: (head,) -> (reader,)."""
    if not graph.separate_qkv:
        return heads
    groups = heads.view(graph.n_kv_heads, -1).any(1)
    return torch.cat([heads, groups, groups])
