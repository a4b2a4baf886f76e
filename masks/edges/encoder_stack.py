"""The blocks of an encoder under gates on its edges, whose norms sit on the stream.

The statistics of a norm are those of the sum of all live writers, no edge removed: of
the stream as it is, which runs along once. Given them every writer's share goes through
the norm by an affine map, and a reader sees row 0 plus the gated shares as they are at
its place, without a norm of its own.

Rows hold carried values (`models.residual.carried_norms`), which no norm changes: each
writer has **one** row for all places, so memory and products are those of a decoder,
with rows wider by two numbers a layer. A row is 1 / s_p times values of its writer, and
a reader sees s_q times its sum, where s is the product of 1 / deviation of the norms
passed, a number a token. The gradient of every s is an inner product as well: with
e_q(t) that of all reads at place q with their gradients, and f_p(t) that of all rows
written at p,

    d loss / d log(deviation of norm j) = -sum over places after j of (e - f).

It goes to the stream, and from there, by the backward pass of the norms, to all earlier
writers. Row 0 is always on: ablation values, and biases of projections and norms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcut.masks.edges.attention import attend
from circuitcut.masks.edges.products import products_into, through_reads
from circuitcut.masks.edges.reads import complete, tiles
from circuitcut.masks.edges.run import EdgeRun, KeptBlock
from circuitcut.models.residual.carried_norms import CarriedLayer, CarriedNorms
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    layer_gates,
    mlp_gates,
    output_gates,
    with_always,
)
from circuitcut.models.residual.graph import ResidualGraph


@dataclass
class _Norm:
    """A norm on the stream, as it was."""

    normal: Float[Tensor, "token d_model"]
    """The stream, centred, by its deviation."""
    inverse: Float[Tensor, "token 1"]
    """1 / deviation."""


@dataclass
class _Kept(KeptBlock):
    """What a layer's backward pass needs of its forward pass."""

    norms: tuple[_Norm, _Norm]
    """After attention and after the MLP."""


@dataclass
class _Written:
    """Values that writers of one place add to the rows whatever was computed."""

    own: Float[Tensor, "writer #token width"] | None
    always: Float[Tensor, "#token width"] | None


class EncoderStack(torch.autograd.Function):
    """Forward and backward pass through all blocks."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, keep: Tensor, run: EdgeRun, *inside: Tensor
    ) -> Tensor:
        del inside  # the run has them
        needs_grad = any(ctx.needs_input_grad)
        gates = keep.detach().to(stream.dtype)
        rows, scales = _run_forward(run, stream.detach(), gates, needs_grad)
        row = with_always(output_gates(run.model.graph, gates)[None])
        read = (row @ rows.flatten(1)).view(rows.shape[1:])
        carried = _carried(run)
        seen = carried.seen(carried.n_norms, read).mul_(scales[-1])
        if needs_grad:
            ctx.run, ctx.dtype, ctx.scales = run, keep.dtype, scales
            ctx.save_for_backward(gates, rows, seen)
        else:
            run.buffers.give_back(rows)
        return seen.view_as(stream)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, rows, seen = ctx.saved_tensors
        d_logits = grad.reshape(seen.shape)
        d_stream, d_keep = _Backward(ctx.run, gates, rows, ctx.scales).run_all(
            d_logits, seen
        )
        ctx.run.kept.clear()
        d_inside = ctx.run.d_inside.take(ctx.run.inside)
        return d_stream.view_as(grad), d_keep.to(ctx.dtype), None, *d_inside


def _carried(run: EdgeRun) -> CarriedNorms:
    assert run.carried is not None
    return run.carried


def _run_forward(
    run: EdgeRun, stream: Tensor, gates: Tensor, needs_grad: bool
) -> tuple[Tensor, list[Tensor]]:
    """Rows of all writers, and s of every place; the rest goes into `run.kept`."""
    model, carried = run.model, _carried(run)
    graph = model.graph
    live = stream.reshape(-1, model.d_model)
    scales = [torch.ones_like(live[:, :1])]
    shape = 1 + graph.n_writers, len(live), carried.width
    rows = run.buffers.borrow(live, *shape, spread=True)
    rows[0].zero_()
    rows[1].copy_(carried.carried(0, live))
    _add_always(rows, slice(1, 2), _constants(run, 0, slice(0, 1)), scales[0])
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)
        projected, read = _read(run, layer, gates, rows, scales[-1])
        always = rows[0].clone()
        with torch.set_grad_enabled(needs_grad):
            attended = attend(run, layer, projected.requires_grad_(needs_grad))
        found = attended.detach().reshape(len(live), -1)
        live = live + _write_heads(run, layer, rows, found, scales[-1])
        live, norm_attention = _through_norm(run, 2 * layer, live, rows, scales)

        complete(read, rows, always, first, mlp_gates(graph, layer, gates)[first:])
        seen = carried.seen(2 * layer + 1, read).mul_(scales[-1]).view_as(stream)
        with torch.set_grad_enabled(needs_grad):
            seen.requires_grad_(needs_grad)
            written = model.run_mlp(layer, seen)
        live = live + _write_mlp(run, layer, rows, written.detach(), scales[-1])
        live, norm_mlp = _through_norm(run, 2 * layer + 1, live, rows, scales)
        if needs_grad:
            norms = norm_attention, norm_mlp
            run.kept.append(_Kept(projected, attended, seen, written, norms))
    return rows, scales


def _read(
    run: EdgeRun, layer: int, gates: Tensor, rows: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries, keys and values; of what the MLP reads the part before the layer."""
    folded, given = run.layers[layer], layer_gates(run.model.graph, layer, gates)
    projected = rows.new_empty(len(given) - 1, rows.shape[1], folded.read.shape[-1])
    of_mlp = rows.new_empty(rows.shape[1:])
    for tokens in tiles(rows[0], len(given)):
        reads = run.read(rows, given, tokens)
        projected[:, tokens] = torch.bmm(reads[:-1], folded.read)
        of_mlp[tokens] = reads[-1]
        run.buffers.give_back(reads)
    return projected.mul_(scale).add_(folded.read_bias), of_mlp


def _write_heads(
    run: EdgeRun, layer: int, rows: Tensor, found: Tensor, scale: Tensor
) -> Tensor:
    """Fill the rows of a layer's heads; what they add to the stream."""
    graph, folded = run.model.graph, _folded(run, layer)
    first = graph.n_before(layer)
    own = slice(1 + first, 1 + first + graph.n_heads)
    by_head = (found / scale).view(len(found), graph.n_heads, -1).transpose(0, 1)
    products_into(rows[own], by_head, folded.write)
    _add_always(rows, own, _head_constants(run, layer), scale)
    total = found @ folded.plain_write
    return total if folded.plain_bias is None else total.add_(folded.plain_bias)


def _write_mlp(
    run: EdgeRun, layer: int, rows: Tensor, written: Tensor, scale: Tensor
) -> Tensor:
    """Fill the row of a layer's MLP; what it adds to the stream."""
    writer = run.model.graph.n_before(layer) + run.model.graph.n_heads
    total = written.reshape(-1, run.model.d_model)
    own = slice(1 + writer, 2 + writer)
    rows[1 + writer].copy_(_carried(run).carried(2 * layer + 1, total / scale))
    _add_always(rows, own, _mlp_constants(run, layer), scale)
    return total


def _through_norm(
    run: EdgeRun, number: int, live: Tensor, rows: Tensor, scales: list[Tensor]
) -> tuple[Tensor, _Norm]:
    """The stream after a norm; s there, and the norm's bias in row 0."""
    carried = _carried(run)
    norm = carried.norms[number]
    centred = live - live.mean(-1, keepdim=True)
    inverse = run.model.inverse_deviation(norm, centred)
    normal = centred.mul_(inverse)
    scales.append(scales[-1] * inverse)
    rows[0].add_(carried.biases[number] / scales[-1])
    after = torch.addcmul(norm.bias.detach(), normal, run.model.gain(norm).detach())
    return after, _Norm(normal, inverse)


def _folded(run: EdgeRun, layer: int) -> CarriedLayer:
    folded = run.layers[layer]
    assert isinstance(folded, CarriedLayer)
    return folded


def _head_constants(run: EdgeRun, layer: int) -> _Written:
    """Of a layer's heads: ablation values, and the bias of the output projection."""
    first, n_heads = run.model.graph.n_before(layer), run.model.graph.n_heads
    constants = _constants(run, 2 * layer, slice(first, first + n_heads))
    bias = _folded(run, layer).write_bias
    if bias is None:
        return constants
    own, always = constants.own, constants.always
    if run.model.graph.attention_bias == "heads":
        part = (bias / n_heads).expand(n_heads, 1, -1)
        return _Written(part if own is None else own + part, always)
    return _Written(own, bias[None] if always is None else always + bias)


def _mlp_constants(run: EdgeRun, layer: int) -> _Written:
    """Of a layer's MLP: its ablation value."""
    writer = run.model.graph.n_before(layer) + run.model.graph.n_heads
    return _constants(run, 2 * layer + 1, slice(writer, writer + 1))


def _constants(run: EdgeRun, place: int, writers: slice) -> _Written:
    """Ablation values, out of the writers' rows and into the row always on."""
    if run.ablated is None:
        return _Written(None, None)
    values = _carried(run).carried(place, run.ablated[writers])
    return _Written(-values, values.sum(0))


def _add_always(rows: Tensor, own: slice, constants: _Written, scale: Tensor) -> None:
    inverse = scale.reciprocal()
    if constants.own is not None:
        rows[own].addcmul_(constants.own, inverse)
    if constants.always is not None:
        rows[0].addcmul_(constants.always, inverse)


@dataclass
class _Backward:
    """The backward pass: what has arrived so far, from the last layer to the first."""

    run: EdgeRun
    gates: Tensor
    rows: Tensor
    scales: list[Tensor]

    def __post_init__(self) -> None:
        self.model, self.carried = self.run.model, _carried(self.run)
        self.grads = self.run.buffers.borrow(self.rows, *self.rows.shape, spread=True)
        """Of the rows; of row 0 what reads it later than the current place."""
        self.d_keep = torch.empty_like(self.gates)
        self.live = self.rows.new_zeros(self.rows.shape[1], self.model.d_model)
        """Of the stream at the current place."""
        self.excess = torch.zeros_like(self.scales[0])
        """e - f of the places after the current norm, a number a token."""
        self.weighed = _weighed(self.run, self.rows, self.scales)

    def run_all(self, grad: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the input's stream and of the gates."""
        graph = self.model.graph
        arriving = self._read_at(self.carried.n_norms, grad, seen).view(-1)
        row = output_gates(graph, self.gates)
        torch.mul(row[:, None], arriving, out=self.grads[1:].flatten(1))
        self.grads[0].view(-1).copy_(arriving)
        d_row = output_gates(graph, self.d_keep)
        torch.mv(self.weighed[1:].flatten(1), arriving, out=d_row)
        for layer in reversed(range(graph.n_layers)):
            kept: _Kept = self.run.kept.pop()
            self._through_norm(2 * layer + 1, kept.norms[1])
            of_mlp = self._through_mlp(layer, kept)
            self._through_norm(2 * layer, kept.norms[0])
            projected = self._through_attention(layer, kept)
            self._to_writers_before(layer, projected, of_mlp)
        d_stream = self.carried.through_carried(0, self.grads[1]).add_(self.live)
        self.run.buffers.give_back(self.rows, self.grads)
        return d_stream, self.d_keep

    def _read_at(self, place: int, grad: Tensor, seen: Tensor) -> Tensor:
        """Gradient of carried values, of that of one read of them."""
        self.excess += (grad * seen).sum(-1, keepdim=True)
        return self.carried.through_seen(place, grad * self.scales[place])

    def _through_norm(self, number: int, norm: _Norm) -> None:
        """Of the stream before a norm: as it is, and through the norm's deviation."""
        in_row_0 = self.grads[0] @ self.carried.biases[number]
        self.excess -= in_row_0[:, None] / self.scales[number + 1]
        grad = self.live * self.model.gain(self.carried.norms[number])
        along = (grad * norm.normal).mean(-1, keepdim=True)
        along += self.excess / self.model.d_model
        grad -= grad.mean(-1, keepdim=True)
        self.live = grad.addcmul_(norm.normal, along, value=-1).mul_(norm.inverse)

    def _through_mlp(self, layer: int, kept: _Kept) -> Tensor:
        """From what an MLP wrote to the carried values that it read."""
        graph, place = self.model.graph, 2 * layer + 1
        first = graph.n_before(layer)
        writer, scale = first + graph.n_heads, self.scales[place]
        grad = self.grads[1 + writer]
        self.excess -= (grad * self.rows[1 + writer]).sum(-1, keepdim=True)
        constants = _mlp_constants(self.run, layer)
        self.excess -= _row_0(self.grads, constants) / scale
        d_written = self.carried.through_carried(place, grad / scale).add_(self.live)
        d_seen = self.run.through(
            kept.written, kept.seen, d_written.view_as(kept.written)
        )
        seen = kept.seen.detach().reshape(-1, self.model.d_model)
        read = self._read_at(place, d_seen.reshape(seen.shape), seen)
        self.grads[0] += read
        own = slice(1 + first, 1 + writer)
        gates = mlp_gates(graph, layer, self.gates)[first:]
        d_gates = mlp_gates(graph, layer, self.d_keep)[first:]
        own_weighed = self.weighed[own].flatten(1)
        torch.mv(own_weighed, read.view(-1), out=d_gates)
        self.grads[own].flatten(1).addr_(gates, read.view(-1))
        return read

    def _through_attention(self, layer: int, kept: _Kept) -> Tensor:
        """From what the heads wrote to products of carried values and weights."""
        graph, folded = self.model.graph, _folded(self.run, layer)
        first, scale = graph.n_before(layer), self.scales[2 * layer]
        grad = self.grads[1 + first : 1 + first + graph.n_heads]
        d_found = torch.bmm(grad, folded.write.mT).transpose(0, 1).flatten(1) / scale
        found = kept.attended.detach().reshape(d_found.shape)
        self.excess -= (d_found * found).sum(-1, keepdim=True)
        constants = _head_constants(self.run, layer)
        of_constants = _row_0(self.grads, constants)
        if constants.own is not None:
            of_constants = of_constants + _inner_by_token(grad, constants.own)
        self.excess -= of_constants / scale
        d_found.addmm_(self.live, folded.plain_write.T)
        d_projected = self.run.through(
            kept.attended, kept.projected, d_found.view_as(kept.attended)
        )
        seen = kept.projected.detach() - folded.read_bias
        self.excess += (d_projected * seen).sum((0, 2))[:, None]
        return d_projected * scale

    def _to_writers_before(self, layer: int, projected: Tensor, of_mlp: Tensor) -> None:
        """To gates and rows of a layer's reads; row 0 has that of the MLP already."""
        graph = self.model.graph
        first, weights = graph.n_before(layer), self.run.layers[layer].read.mT
        gates = layer_gates(graph, layer, self.gates)
        gates[-1, 0] = 0
        d_gates = torch.zeros_like(gates[:, 1:])
        for tokens in tiles(self.rows[0], len(gates)):
            reads = self.run.tile(self.rows, len(gates), tokens)
            torch.bmm(projected[:, tokens], weights, out=reads[:-1])
            reads[-1] = of_mlp[tokens]
            found = through_reads(
                reads,
                gates,
                self.weighed[: 1 + first, tokens],
                self.grads[: 1 + first, tokens],
            )
            assert found is not None
            d_gates += found[:, 1:]
            self.run.buffers.give_back(reads)
        attention_gates(graph, layer, self.d_keep).copy_(d_gates[:-1])
        mlp_gates(graph, layer, self.d_keep)[:first] = d_gates[-1]


def _weighed(run: EdgeRun, rows: Tensor, scales: list[Tensor]) -> Tensor:
    """Of row 0 and every writer what its gates weigh; row 0 has no gate."""
    if run.differences is None:
        return rows
    graph, carried = run.model.graph, _carried(run)
    weighed = torch.zeros_like(rows)
    for first, last, place in _places(graph):
        own = run.differences[first:last] / scales[place]
        weighed[1 + first : 1 + last] = carried.carried(place, own)
    return weighed


def _places(graph: ResidualGraph) -> Iterator[tuple[int, int, int]]:
    """Of every group of writers the first, the one after the last, and the place."""
    yield 0, graph.n_inputs, 0
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)
        mlp = first + graph.n_heads
        yield first, mlp, 2 * layer
        yield mlp, mlp + 1, 2 * layer + 1


def _row_0(grads: Tensor, constants: _Written) -> Tensor:
    """Inner products of row 0's gradient and what was added to it, a number a token."""
    if constants.always is None:
        return grads.new_zeros(())
    return _inner_by_token(grads[:1], constants.always[None])


def _inner_by_token(grads: Tensor, constants: Tensor) -> Tensor:
    """Sums over writers and width: (writer, token, width) to (token, 1)."""
    if constants.shape[1] == 1:
        return torch.bmm(grads, constants.mT).sum(0)
    return (grads * constants).sum((0, 2))[:, None]
