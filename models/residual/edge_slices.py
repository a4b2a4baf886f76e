"""Where one layer's gates lie in the flat vector of edges, and their gradient."""

import torch
from torch import Tensor
from torch.nn import functional

from circuitcut.models.residual.graph import ResidualGraph


def attention_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's attention: (reader, writer before the layer)."""
    n, before = graph.n_attention_readers, graph.n_before(layer)
    start = graph.offsets[layer]
    return gates[start : start + n * before].view(n, before)


def mlp_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's MLP: (writer,), the layer's own heads last."""
    stop = graph.offsets[layer + 1]
    return gates[stop - graph.n_seen_by_mlp(layer) : stop]


def output_gates(graph: ResidualGraph, gates: Tensor) -> Tensor:
    """Gates of the logits: (writer,)."""
    return gates[-graph.n_writers :]


def layer_gates(
    graph: ResidualGraph, layer: int, gates: Tensor, *, with_output: bool = False
) -> Tensor:
    """(reader and MLP, always on and writer before the layer).

    Args:
        with_output: Add a row, last: what the logits read of the same writers.
    """
    single_readers = [mlp_gates(graph, layer, gates)]
    if with_output:
        single_readers.append(output_gates(graph, gates))
    rows = [row[None, : graph.n_before(layer)] for row in single_readers]
    return with_always(torch.cat([attention_gates(graph, layer, gates), *rows]))


def with_always(gates: Tensor) -> Tensor:
    """(reader, writer) to (reader, always on and writer)."""
    return functional.pad(gates, (1, 0), value=1.0)


def writers_of(graph: ResidualGraph, marked: Tensor) -> list[int]:
    """Writers of the marked edges."""
    is_writer = output_gates(graph, marked).clone()  # (writer,)
    for layer in range(graph.n_layers):
        of_attention = attention_gates(graph, layer, marked).any(0)
        is_writer[: graph.n_before(layer)] |= of_attention
        is_writer[: graph.n_seen_by_mlp(layer)] |= mlp_gates(graph, layer, marked)
    return is_writer.nonzero()[:, 0].tolist()
