"""All blocks of a model under gates on its edges, forward.

Symbols and equations: docs/edge_engine.md, sections 2 to 4.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from circuitcut.masks.edges.attention import attend
from circuitcut.masks.edges.products import products_into, squares_of
from circuitcut.masks.edges.read_groups import GroupedReads, ReadGroup
from circuitcut.masks.edges.reads import (
    centred,
    complete,
    project_into,
    scale_of,
)
from circuitcut.masks.edges.run import EdgeRun, KeptBlock
from circuitcut.models.residual.edge_slices import layer_gates, mlp_gates, output_gates
from circuitcut.models.residual.graph import ResidualGraph


@dataclass
class KeptLayer(KeptBlock):
    """What a layer's backward pass needs of its forward pass."""

    scale: Tensor | None
    """s[r, t] of the attention readers: (reader, token, 1); None without a norm."""
    head_scale: tuple[Tensor, Tensor] | None
    """Of a norm on what attention writes: its scale (token, 1) and sum_n o[n] O[n],
    (token, d_model), which it normalises."""
    always: Tensor
    """x0 as this layer's attention reads it: (token, d_model)."""
    groups: list[ReadGroup]
    """read[r, t] of the layer's group, one a tile; empty where the backward pass
    recomputes them."""
    shared_read: Tensor | None
    """The one read of all attention readers, (token, d_model), where all gates are
    open."""


def run_forward(
    run: EdgeRun,
    stream: Tensor,
    gates: Tensor,
    position: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of all writers, and what the logits read, (token, d_model).

    What the backward pass needs goes into `run.kept`.
    """
    model, graph = run.model, run.model.graph
    n_tokens = stream.shape[0] * stream.shape[1]
    # rows[0] is x0 and rows[1 + w] is x[w]: (1 + writer, token, d_model)
    shape = 1 + graph.n_writers, n_tokens, model.d_model
    rows = run.buffers.borrow(stream, *shape, spread=True)
    _write_inputs(run, rows, stream, position)
    # all gates open: read[r, t] = x0 + sum_w x[w], the same for every reader
    shared = rows[: 1 + graph.n_inputs].sum(0) if run.is_open else None
    grouped = GroupedReads(
        run,
        rows,
        graph.n_layers,
        n_readers_of(graph),
        partial(gates_of_reads, graph, gates=gates),
        keep=needs_grad and run.store_reads,
    )
    for layer in range(graph.n_layers):
        always = rows[0].clone()
        first = graph.n_before(layer)  # W_l
        if shared is None:
            projected, scale, partial_reads, groups = _read(run, layer, grouped, always)
        else:
            projected, scale, partial_reads = _read_shared(run, layer, shared)
            groups = []
        attended = _attend(run, layer, projected, needs_grad)
        head_scale = _write_heads(run, layer, rows, attended.detach())
        if not graph.parallel:
            # read[mlp] += k0 + sum_n (g[mlp, n] x[n] + a[n]), n this layer's heads
            new_gates = mlp_gates(graph, layer, gates)[first:]
            complete(partial_reads[0], rows, always, first, new_gates)
        mlp_read = partial_reads[0].view_as(stream)
        mlp_written = _run_mlp(run, layer, mlp_read, needs_grad)
        _write_mlp(run, layer, rows, mlp_written.detach())
        if needs_grad:
            run.kept.append(
                KeptLayer(
                    projected, attended, mlp_read, mlp_written, scale, head_scale,
                    always, groups, shared,
                )
            )  # fmt: skip
        if shared is not None:
            shared = shared.clone()
            complete(shared, rows, always, first, gates.new_ones(graph.n_heads + 1))
    # read[logits] over w < W_l of the last layer l, then over that layer's writers
    read = partial_reads[1]
    complete(read, rows, always, first, output_gates(graph, gates)[first:])
    return rows, read


def _read(
    run: EdgeRun, layer: int, grouped: GroupedReads, always: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor], list[ReadGroup]]:
    """The reads of a layer, tile by tile, over the writers before it.

    Returns:
        p, (reader, token, width); s, (reader, token, 1); the partial reads of the MLP
        and, in the last layer, of the logits, (token, d_model) each; and the reads
        themselves, a group a tile, where they are stored for the backward pass.
    """
    model, folded = run.model, run.layers[layer]
    n_readers = model.graph.n_attention_readers
    projected = always.new_empty(n_readers, len(always), folded.read.shape[-1])
    # separate tensors: autograd keeps the MLP's, the logits' is still added to
    is_last = layer + 1 == model.graph.n_layers
    partial_reads = [torch.empty_like(always) for _ in range(2 if is_last else 1)]
    scales, stored = [], []
    for group, place in grouped.of(layer, always):
        # read[r, t] = x0[t] + sum_w g[r, w] x[w, t], and |read[r, t]|^2
        reads, tokens = group.of(place), group.tokens
        # s = (|read|^2 / d + eps)^(-1/2), p = s read A + b   (reader, tile, width)
        squares = group.squares_of(place)[:n_readers]
        scale = scale_of(model, layer, squares, always.dtype)
        project_into(projected[:, tokens], folded, reads[:n_readers], scale)
        for partial_read, tile in zip(partial_reads, reads[n_readers:], strict=True):
            partial_read[tokens] = tile
        if scale is not None:
            scales.append(scale)
        if grouped.keep:
            stored.append(group)
    scale = torch.cat(scales, 1) if scales else None
    return projected, scale, partial_reads, stored


def _read_shared(
    run: EdgeRun, layer: int, shared: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The first three of `_read` where all gates are open: one read, (token, d_model).

    The projections of all readers are then one product.
    """
    folded = run.layers[layer]
    # s of the one read: (1, token, 1)
    scale = scale_of(run.model, layer, squares_of(shared[None]), shared.dtype)
    n_readers, width = folded.read.shape[0], folded.read.shape[-1]
    # read [A[0] ... A[R - 1]]   (token, reader * width) -> (reader, token, width)
    products = shared @ folded.read.mT.flatten(0, 1).T
    projected = products.view(len(shared), n_readers, width).transpose(0, 1)
    projected = projected.contiguous()
    if scale is not None:
        projected.mul_(scale)
    is_last = layer + 1 == run.model.graph.n_layers
    partial_reads = [shared.clone() for _ in range(2 if is_last else 1)]
    return projected.add_(folded.read_bias), scale, partial_reads


def n_readers_of(graph: ResidualGraph) -> int:
    """Readers of one product of reads: those of attention, and the MLP."""
    return graph.n_attention_readers + 1


def gates_of_reads(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of one product of reads: (reader, x0 and writer before the layer).

    The readers are the layer's attention and MLP, in the last layer also the logits.
    """
    is_last = layer + 1 == graph.n_layers
    return layer_gates(graph, layer, gates, with_output=is_last)


def _attend(run: EdgeRun, layer: int, projected: Tensor, needs_grad: bool) -> Tensor:
    """o of all heads, (batch, seq, head * d_head), with a graph to the leaf p."""
    with torch.set_grad_enabled(needs_grad):
        projected.requires_grad_(needs_grad)
        return attend(run, layer, projected)


def _run_mlp(run: EdgeRun, layer: int, mlp_read: Tensor, needs_grad: bool) -> Tensor:
    """h of the MLP, (batch, seq, d_model), with a graph to the leaf read[mlp]."""
    with torch.set_grad_enabled(needs_grad):
        mlp_read.requires_grad_(needs_grad)
        return run.model.run_mlp(layer, mlp_read)


def _write_inputs(
    run: EdgeRun, rows: Tensor, stream: Tensor, position: Tensor | None
) -> None:
    """Fill the rows of `input` and `position`, and x0."""
    model = run.model
    shape = (len(rows[0]), model.d_model)
    rows[0].zero_()
    if position is None:
        rows[1].copy_(stream.reshape(shape))
    else:
        # h[input] = stream - e, with e the position embedding
        embedding = position.expand_as(stream).reshape(shape)
        torch.sub(stream.reshape(shape), embedding, out=rows[1])
        if model.graph.position == "own":
            rows[2].copy_(centred(model, embedding))  # h[position] = e
        else:
            rows[0].copy_(centred(model, embedding))  # x0 = e
    if model.centred:
        rows[1].sub_(rows[1].mean(-1, keepdim=True))
    _ablate(run, rows, slice(0, model.graph.n_inputs))


def _write_heads(
    run: EdgeRun, layer: int, rows: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Fill the rows of a layer's heads and x0; what `KeptLayer.head_scale` keeps."""
    model, folded = run.model, run.layers[layer]
    graph = model.graph
    first = graph.n_before(layer)
    head_rows = rows[1 + first : 1 + first + graph.n_heads]
    # h[n, t] = o[n, t] O[n]   (head, token, d_head) @ (head, d_head, d_model)
    by_head = attended.reshape(-1, graph.n_heads, model.d_head).transpose(0, 1)
    products_into(head_rows, by_head, folded.write)
    head_scale = None
    norm = model.norm(layer, model.parts.norm_attention)
    if norm is not None:
        # h[n] = s gain o[n] O[n], s = (|sum_n o[n] O[n]|^2 / d + eps)^(-1/2)
        total = head_rows.sum(0)
        scale = model.inverse_deviation(norm, total)
        head_rows.mul_(scale).mul_(model.gain(norm))
        head_scale = scale, total
    if folded.head_bias is not None:
        head_rows.add_(folded.head_bias[:, None])  # h[n] += k[n]
    if folded.always_bias is not None:
        rows[0].add_(folded.always_bias)  # x0 += k0
    _ablate(run, rows, slice(first, first + graph.n_heads))
    return head_scale


def _write_mlp(run: EdgeRun, layer: int, rows: Tensor, written: Tensor) -> None:
    """Fill the row of a layer's MLP and x0."""
    model = run.model
    writer = model.graph.n_before(layer) + model.graph.n_heads
    rows[1 + writer].copy_(centred(model, written.reshape(-1, model.d_model)))
    _ablate(run, rows, slice(writer, writer + 1))


def _ablate(run: EdgeRun, rows: Tensor, writers: slice) -> None:
    """x[w] = C (h[w] - a[w]) of rows that hold C h[w], and x0 += sum_w C a[w]."""
    if run.ablated is not None:
        values = centred(run.model, run.ablated[writers])
        rows[1:][writers].sub_(values)
        rows[0].add_(values.sum(0))
