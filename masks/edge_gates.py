"""Where one layer's gates lie in the flat vector of edges, and their gradient."""

import torch
from torch import Tensor

from models.residual_graph import ResidualGraph

FEW_READERS = 16
FEW_WRITERS = 60
"""Up to here the gradient of the gates is summed token by token, which is faster than
one product with a very long inner dimension."""


def attention_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's attention: (reader, writer before the layer)."""
    n, before = graph.n_attention_readers, graph.n_before(layer)
    start = graph.offsets[layer]
    return gates[start : start + n * before].view(n, before)


def mlp_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's MLP: (writer,), the layer's own heads last."""
    stop = graph.offsets[layer + 1]
    return gates[stop - graph.n_seen_by_mlp(layer) : stop]


def layer_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """(reader and MLP, always on and writer before the layer)."""
    attention = attention_gates(graph, layer, gates)
    mlp = mlp_gates(graph, layer, gates)[: graph.n_before(layer)]
    together = torch.cat([attention, mlp[None]])
    return torch.cat([together.new_ones(len(together), 1), together], 1)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner products over tokens and d_model: (a, t, d), (b, t, d) -> (a, b)."""
    if len(left) <= FEW_READERS or len(right) < FEW_WRITERS:
        products = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))
        return products.sum(0)
    return left.flatten(1) @ right.flatten(1).T


def writers_of(graph: ResidualGraph, marked: Tensor) -> list[int]:
    """Writers of the marked edges."""
    found = marked[-graph.n_writers :].clone()
    for layer in range(graph.n_layers):
        found[: graph.n_before(layer)] |= attention_gates(graph, layer, marked).any(0)
        found[: graph.n_seen_by_mlp(layer)] |= mlp_gates(graph, layer, marked)
    return found.nonzero()[:, 0].tolist()
