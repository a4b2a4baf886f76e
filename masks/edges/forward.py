"""All blocks of a model under gates on its edges, forward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.masks.edges.attention import attend
from circuitcut.masks.edges.products import products_into, squares_of
from circuitcut.masks.edges.reads import (
    centred,
    complete,
    project_into,
    scale_of,
    tiles,
)
from circuitcut.masks.edges.run import EdgeRun, KeptBlock
from circuitcut.models.residual.edge_slices import layer_gates, mlp_gates, output_gates
from circuitcut.models.residual.graph import ResidualGraph


@dataclass
class KeptLayer(KeptBlock):
    """What a layer's backward pass needs of its forward pass."""

    scale: Tensor | None
    """1 / deviation of every read: (reader, token, 1)."""
    head_scale: tuple[Tensor, Tensor] | None
    """Of a norm on what attention writes: 1 / deviation, and the heads' sum."""
    always: Tensor
    """Row 0 as this layer's attention read it."""
    reads: list[Tensor]
    """The reads themselves, a tile each, where they are stored and not repeated."""
    live: Tensor | None
    """The read of all readers, (token, d_model), where all gates are open."""


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
    model, buffers = run.model, run.buffers
    graph, n_tokens = model.graph, stream.shape[0] * stream.shape[1]
    shape = 1 + graph.n_writers, n_tokens, model.d_model
    rows = buffers.borrow(stream, *shape, spread=True)
    _write_inputs(run, rows, stream, position)
    live = rows[: 1 + graph.n_inputs].sum(0) if run.is_open else None
    for layer in range(graph.n_layers):
        always = rows[0].clone()
        first = graph.n_before(layer)
        if live is None:
            projected, scale, later, stored = _read(run, layer, gates, rows, needs_grad)
        else:
            projected, scale, later = _read_alike(run, layer, live)
            stored = []
        seen = later[0]
        with torch.set_grad_enabled(needs_grad):
            projected.requires_grad_(needs_grad)
            attended = attend(run, layer, projected)
        head_scale = _write_heads(run, layer, rows, attended.detach())
        if not graph.parallel:
            own = mlp_gates(graph, layer, gates)[first:]
            complete(seen, rows, always, first, own)
        seen = seen.view_as(stream)
        with torch.set_grad_enabled(needs_grad):
            seen.requires_grad_(needs_grad)
            written = model.run_mlp(layer, seen)
        _write_mlp(run, layer, rows, written.detach())
        if needs_grad:
            run.kept.append(
                KeptLayer(
                    projected, attended, seen, written, scale, head_scale, always,
                    stored, live,
                )
            )  # fmt: skip
        if live is not None:
            live = live.clone()
            complete(live, rows, always, first, gates.new_ones(graph.n_heads + 1))
    # the last layer's reads have one more row, of what was written before that layer
    read = later[1]
    complete(read, rows, always, first, output_gates(graph, gates)[first:])
    return rows, read


def _read(
    run: EdgeRun, layer: int, gates: Tensor, rows: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Queries, keys and values, the reads' scales, and what is completed later.

    That is what the MLP sees, and in the last layer the logits, so far. Last come the
    reads themselves, tile by tile, where they are to be stored.
    """
    model, folded = run.model, run.layers[layer]
    given = gates_of_reads(model.graph, layer, gates)
    n_tokens, n_readers = rows.shape[1], model.graph.n_attention_readers
    projected = rows.new_empty(n_readers, n_tokens, folded.read.shape[-1])
    # apart, for autograd keeps the first and the second is still added to
    later = [torch.empty_like(rows[0]) for _ in given[n_readers:]]
    scales, stored = [], []
    wide = torch.promote_types(rows.dtype, torch.float32)
    for tokens in tiles(rows[0], len(given)):
        n_own = tokens.stop - tokens.start
        squares = rows.new_empty(len(given), n_own, dtype=wide)
        reads = run.read(rows, given, tokens, squares)
        of_heads = reads[:n_readers]
        scale = scale_of(model, layer, squares[:n_readers], rows.dtype)
        project_into(projected[:, tokens], folded, of_heads, scale)
        for read, found in zip(later, reads[n_readers:], strict=True):
            read[tokens] = found
        if scale is not None:
            scales.append(scale)
        if needs_grad and run.store_reads:
            stored.append(reads)
        else:
            run.buffers.give_back(reads)
    return projected, torch.cat(scales, 1) if scales else None, later, stored


def _read_alike(
    run: EdgeRun, layer: int, live: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The same of readers that all see the same, in one product."""
    folded = run.layers[layer]
    scale = scale_of(run.model, layer, squares_of(live[None]), live.dtype)
    n_readers, width = folded.read.shape[0], folded.read.shape[-1]
    together = live @ folded.read.mT.flatten(0, 1).T
    projected = together.view(len(live), n_readers, width).transpose(0, 1).contiguous()
    if scale is not None:
        projected.mul_(scale)
    is_last = layer + 1 == run.model.graph.n_layers
    later = [live.clone() for _ in range(2 if is_last else 1)]
    return projected.add_(folded.read_bias), scale, later


def gates_of_reads(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Of a layer's readers, in the last layer of the logits too: writers before it."""
    is_last = layer + 1 == graph.n_layers
    return layer_gates(graph, layer, gates, with_output=is_last)


def _write_inputs(
    run: EdgeRun, rows: Tensor, stream: Tensor, position: Tensor | None
) -> None:
    model = run.model
    shape = (len(rows[0]), model.d_model)
    rows[0].zero_()
    if position is None:
        rows[1].copy_(stream.reshape(shape))
    else:
        apart = position.expand_as(stream).reshape(shape)
        torch.sub(stream.reshape(shape), apart, out=rows[1])
        if model.graph.position == "own":
            rows[2].copy_(centred(model, apart))
        else:
            rows[0].copy_(centred(model, apart))
    if model.centred:
        rows[1].sub_(rows[1].mean(-1, keepdim=True))
    _ablate(run, rows, slice(0, model.graph.n_inputs))


def _write_heads(
    run: EdgeRun, layer: int, rows: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Fill the rows of a layer's heads and row 0; the scale of a norm on them."""
    model, folded = run.model, run.layers[layer]
    graph = model.graph
    first = graph.n_before(layer)
    own = rows[1 + first : 1 + first + graph.n_heads]
    found = attended.reshape(-1, graph.n_heads, model.d_head).transpose(0, 1)
    products_into(own, found, folded.write)
    head_scale = None
    norm = model.norm(layer, model.parts.norm_attention)
    if norm is not None:
        total = own.sum(0)
        scale = model.inverse_deviation(norm, total)
        own.mul_(scale).mul_(model.gain(norm))
        head_scale = scale, total
    if folded.write_bias is not None:
        if graph.attention_bias == "heads":
            own.add_(folded.write_bias / graph.n_heads)
        else:
            rows[0].add_(folded.write_bias)
    _ablate(run, rows, slice(first, first + graph.n_heads))
    return head_scale


def _write_mlp(run: EdgeRun, layer: int, rows: Tensor, written: Tensor) -> None:
    model = run.model
    place = model.graph.n_before(layer) + model.graph.n_heads
    rows[1 + place].copy_(centred(model, written.reshape(-1, model.d_model)))
    _ablate(run, rows, slice(place, place + 1))


def _ablate(run: EdgeRun, rows: Tensor, writers: slice) -> None:
    """Take the ablation values out of the writers' rows into the row always on."""
    if run.ablated is not None:
        values = centred(run.model, run.ablated[writers])
        rows[1:][writers].sub_(values)
        rows[0].add_(values.sum(0))
