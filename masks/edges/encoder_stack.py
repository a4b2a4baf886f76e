"""The blocks of an encoder under gates on its edges, whose norms sit on the stream.

The statistics of a norm are those of the live stream, the sum of what all writers write
in this run with no edge removed. Given them the norm is affine, so each writer's share
goes through it on its own, and a reader reads x0 plus the gated shares as they are at
its place, without a norm of its own.

Rows hold carried values (`models.residual.carried_norms`), which no norm changes: each
writer has **one** row for all places, so memory and products are those of a decoder,
with rows wider by two numbers a layer. With sigma_j the deviation of norm j, K_p and
V_q the linear maps `carried` and `read`, and s_q = product over j < q of 1 / sigma_j:

    x[w, t] = K_p (h[w, t] - a[w, t]) / s_p[t]                    written at place p
    read[r, t] = s_q[t] V_q (x0[t] + sum_w g[r, w] x[w, t])       read at place q

The gradient of every s is an inner product as well. With e_q[t] that of all reads at
place q with their gradients, and f_p[t] that of all rows written at p with theirs,

    dL/dlog sigma_j[t] = -sum over places q > j of (e_q[t] - f_q[t]).

It goes to the live stream, and from there, by the backward pass of the norms, to all
earlier writers. Row 0 is always on: x0 holds ablation values, and the biases of
projections and norms. Derivation: docs/edge_engine.md, section 9.
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
    """(live - mean of live) / sigma."""
    inverse: Float[Tensor, "token 1"]
    """1 / sigma."""


@dataclass
class _Kept(KeptBlock):
    """What a layer's backward pass needs of its forward pass."""

    norms: tuple[_Norm, _Norm]
    """After attention and after the MLP."""


@dataclass
class _Constants:
    """Carried values that do not depend on the run; rows get them divided by s_p."""

    of_writers: Float[Tensor, "writer #token width"] | None
    """Added to x[w]: K_p of -a[w], and of k[n]."""
    of_always: Float[Tensor, "#token width"] | None
    """Added to x0: K_p of sum_w a[w], and of k0."""


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
        # read[logits] = s_q V_q (x0 + sum_w g[logits, w] x[w]), q after all norms
        logits_gates = with_always(output_gates(run.model.graph, gates)[None])
        carried_read = (logits_gates @ rows.flatten(1)).view(rows.shape[1:])
        carried = _carried(run)
        read = carried.read(carried.n_norms, carried_read).mul_(scales[-1])
        if needs_grad:
            ctx.run, ctx.dtype, ctx.scales = run, keep.dtype, scales
            ctx.save_for_backward(gates, rows, read)
        else:
            run.buffers.give_back(rows)
        return read.view_as(stream)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, rows, read = ctx.saved_tensors
        d_read = grad.reshape(read.shape)
        backward = _Backward(ctx.run, gates, rows, ctx.scales)
        d_stream, d_keep = backward.run_all(d_read, read)
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
    live = stream.reshape(-1, model.d_model)  # the stream as it is, no edge removed
    scales = [torch.ones_like(live[:, :1])]  # s_0 = 1   (token, 1)
    # rows[0] is x0 and rows[1 + w] is x[w]: (1 + writer, token, width)
    shape = 1 + graph.n_writers, len(live), carried.width
    rows = run.buffers.borrow(live, *shape, spread=True)
    rows[0].zero_()
    rows[1].copy_(carried.carried(0, live))
    _add_constants(rows, slice(1, 2), _ablation(run, 0, slice(0, 1)), scales[0])
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)  # W_l
        # attention reads and writes at place 2l
        projected, partial = _read(run, layer, gates, rows, scales[-1])
        always = rows[0].clone()
        with torch.set_grad_enabled(needs_grad):
            attended = attend(run, layer, projected.requires_grad_(needs_grad))
        by_token = attended.detach().reshape(len(live), -1)
        live = live + _write_heads(run, layer, rows, by_token, scales[-1])
        live, norm_attention = _through_norm(run, 2 * layer, live, rows, scales)

        # the MLP at 2l + 1: x0 + sum_w g x, now with this layer's heads and constants
        new_gates = mlp_gates(graph, layer, gates)[first:]
        complete(partial, rows, always, first, new_gates)
        mlp_read = carried.read(2 * layer + 1, partial).mul_(scales[-1])
        mlp_read = mlp_read.view_as(stream)
        with torch.set_grad_enabled(needs_grad):
            mlp_read.requires_grad_(needs_grad)
            written = model.run_mlp(layer, mlp_read)
        live = live + _write_mlp(run, layer, rows, written.detach(), scales[-1])
        live, norm_mlp = _through_norm(run, 2 * layer + 1, live, rows, scales)
        if needs_grad:
            norms = norm_attention, norm_mlp
            run.kept.append(_Kept(projected, attended, mlp_read, written, norms))
    return rows, scales


def _read(
    run: EdgeRun, layer: int, gates: Tensor, rows: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """p, (reader, token, d_head), and the MLP's partial read, carried: (token, width).

    p = s_q (x0 + sum_w g x) A + b, where A reads carried values: V_q is folded in.
    """
    folded = run.layers[layer]
    # 1 and g[r, w] of w < W_l: (attention reader and MLP, x0 and writer)
    read_gates = layer_gates(run.model.graph, layer, gates)
    n_readers, width = len(read_gates) - 1, folded.read.shape[-1]
    projected = rows.new_empty(n_readers, rows.shape[1], width)
    partial = rows.new_empty(rows.shape[1:])
    for tokens in tiles(rows[0], len(read_gates)):
        reads = run.read(rows, read_gates, tokens)  # (reader, tile, width)
        projected[:, tokens] = torch.bmm(reads[:-1], folded.read)
        partial[tokens] = reads[-1]
        run.buffers.give_back(reads)
    return projected.mul_(scale).add_(folded.read_bias), partial


def _write_heads(
    run: EdgeRun, layer: int, rows: Tensor, attended: Tensor, scale: Tensor
) -> Tensor:
    """Fill the rows of a layer's heads; what they add to the live stream.

    Args:
        attended: o of all heads, (token, head * d_head).
        scale: s_p, (token, 1).
    """
    graph, folded = run.model.graph, _folded(run, layer)
    first = graph.n_before(layer)
    heads = slice(1 + first, 1 + first + graph.n_heads)
    # x[n] = (o[n] / s_p) K_p(O[n])   (head, token, d_head) @ (head, d_head, width)
    by_head = (attended / scale).view(len(attended), graph.n_heads, -1).transpose(0, 1)
    products_into(rows[heads], by_head, folded.write)
    _add_constants(rows, heads, _head_constants(run, layer), scale)
    # live += sum_n o[n] O[n] + b_O   (token, d_model)
    total = attended @ folded.plain_write
    return total if folded.plain_bias is None else total.add_(folded.plain_bias)


def _write_mlp(
    run: EdgeRun, layer: int, rows: Tensor, written: Tensor, scale: Tensor
) -> Tensor:
    """Fill the row of a layer's MLP; what it adds to the live stream."""
    writer = run.model.graph.n_before(layer) + run.model.graph.n_heads
    total = written.reshape(-1, run.model.d_model)
    # x[w] = K_p (h[w] / s_p), and constants: (token, width)
    rows[1 + writer].copy_(_carried(run).carried(2 * layer + 1, total / scale))
    place = slice(1 + writer, 2 + writer)
    _add_constants(rows, place, _mlp_constants(run, layer), scale)
    return total


def _through_norm(
    run: EdgeRun, number: int, live: Tensor, rows: Tensor, scales: list[Tensor]
) -> tuple[Tensor, _Norm]:
    """The live stream after norm j = `number`; appends s, and adds its bias to x0."""
    carried = _carried(run)
    norm = carried.norms[number]
    centred = live - live.mean(-1, keepdim=True)
    inverse = run.model.inverse_deviation(norm, centred)  # 1 / sigma_j   (token, 1)
    normal = centred.mul_(inverse)
    scales.append(scales[-1] * inverse)  # s_{j+1} = s_j / sigma_j
    rows[0].add_(carried.biases[number] / scales[-1])  # x0 += K_{j+1}(bias) / s_{j+1}
    # live after it: bias + normal * gain
    after = torch.addcmul(norm.bias.detach(), normal, run.model.gain(norm).detach())
    return after, _Norm(normal, inverse)


def _folded(run: EdgeRun, layer: int) -> CarriedLayer:
    folded = run.layers[layer]
    assert isinstance(folded, CarriedLayer)
    return folded


def _head_constants(run: EdgeRun, layer: int) -> _Constants:
    """Of a layer's heads: ablation values, k[n] and k0."""
    first, n_heads = run.model.graph.n_before(layer), run.model.graph.n_heads
    constants = _ablation(run, 2 * layer, slice(first, first + n_heads))
    of_writers, of_always = constants.of_writers, constants.of_always
    folded = _folded(run, layer)
    if folded.head_bias is not None:
        of_heads = folded.head_bias[:, None]  # K_p(k[n])   (head, 1, width)
        of_writers = of_heads if of_writers is None else of_writers + of_heads
    if folded.always_bias is not None:
        bias = folded.always_bias[None]  # (1, width)
        of_always = bias if of_always is None else of_always + bias
    return _Constants(of_writers, of_always)


def _mlp_constants(run: EdgeRun, layer: int) -> _Constants:
    """Of a layer's MLP: its ablation value."""
    writer = run.model.graph.n_before(layer) + run.model.graph.n_heads
    return _ablation(run, 2 * layer + 1, slice(writer, writer + 1))


def _ablation(run: EdgeRun, place: int, writers: slice) -> _Constants:
    """-K_p(a[w]) for the writers' rows, and sum_w K_p(a[w]) for x0."""
    if run.ablated is None:
        return _Constants(None, None)
    values = _carried(run).carried(place, run.ablated[writers])
    return _Constants(-values, values.sum(0))


def _add_constants(
    rows: Tensor, place: slice, constants: _Constants, scale: Tensor
) -> None:
    """Add constants, divided by s_p, to the rows at `place` and to x0."""
    inverse = scale.reciprocal()
    if constants.of_writers is not None:
        rows[place].addcmul_(constants.of_writers, inverse)
    if constants.of_always is not None:
        rows[0].addcmul_(constants.of_always, inverse)


@dataclass
class _Backward:
    """The backward pass: gradients summed so far, from the last layer to the first."""

    run: EdgeRun
    gates: Tensor
    rows: Tensor
    scales: list[Tensor]

    def __post_init__(self) -> None:
        self.model, self.carried = self.run.model, _carried(self.run)
        self.grads = self.run.buffers.borrow(self.rows, *self.rows.shape, spread=True)
        """D0 and D[w], (1 + writer, token, width); D0 of the readers after the current
        place."""
        self.d_keep = torch.empty_like(self.gates)
        self.d_live = self.rows.new_zeros(self.rows.shape[1], self.model.d_model)
        """dL/dlive at the current place, (token, d_model)."""
        self.excess = torch.zeros_like(self.scales[0])
        """sum of (e_q - f_q) over the places q after the current norm, (token, 1)."""
        self.gated_rows = _gated_rows(self.run, self.rows, self.scales)
        """y[w, t]; row 0 has no gate: (1 + writer, token, width)."""

    def run_all(self, d_read: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the input's stream and of the gates.

        Args:
            d_read: dL/dread[logits], (token, d_model).
            read: read[logits], (token, d_model).
        """
        graph = self.model.graph
        d_carried = self._through_read(self.carried.n_norms, d_read, read).view(-1)
        # D[w] = g[logits, w] dL/dread, D0 = dL/dread   (token * width,)
        logits_gates = output_gates(graph, self.gates)
        torch.mul(logits_gates[:, None], d_carried, out=self.grads[1:].flatten(1))
        self.grads[0].view(-1).copy_(d_carried)
        # dL/dg[logits, w] = sum_t <y[w, t], dL/dread[logits, t]>   (writer,)
        d_gates = output_gates(graph, self.d_keep)
        torch.mv(self.gated_rows[1:].flatten(1), d_carried, out=d_gates)
        for layer in reversed(range(graph.n_layers)):
            kept: _Kept = self.run.kept.pop()
            self._through_norm(2 * layer + 1, kept.norms[1])
            d_mlp_read = self._through_mlp(layer, kept)
            self._through_norm(2 * layer, kept.norms[0])
            d_projected = self._through_attention(layer, kept)
            self._to_writers_before(layer, d_projected, d_mlp_read)
        # dL/dstream = K_0^T D[input] + dL/dlive   (s_0 = 1)
        d_stream = self.carried.through_carried(0, self.grads[1]).add_(self.d_live)
        self.run.buffers.give_back(self.rows, self.grads)
        return d_stream, self.d_keep

    def _through_read(self, place: int, grad: Tensor, read: Tensor) -> Tensor:
        """dL/d(x0 + sum_w g x), (token, width), of dL/dread = `grad` at `place` q.

        read = s_q V_q (x0 + sum_w g x): e_q += <read, dL/dread>.
        """
        self.excess += (grad * read).sum(-1, keepdim=True)
        return self.carried.through_read(place, grad * self.scales[place])

    def _through_norm(self, number: int, norm: _Norm) -> None:
        """dL/dlive before norm j = `number`, of that after it and of dL/dlog sigma_j.

        With normal = c / sigma, c = C live, sigma^2 = |c|^2 / d + eps, and
        u = gain dL/dlive after the norm, before it dL/dlive is
        C (u - normal (mean of (u normal) + excess / d)) / sigma.
        """
        # x0 holds K_{j+1}(bias) / s_{j+1}: f += <that, D0>   (token, 1)
        d_bias = self.grads[0] @ self.carried.biases[number]
        self.excess -= d_bias[:, None] / self.scales[number + 1]
        grad = self.d_live * self.model.gain(self.carried.norms[number])
        along = (grad * norm.normal).mean(-1, keepdim=True)
        # dL/dlog sigma_j = -excess, dlog sigma_j/dc = normal / (sigma d)
        along += self.excess / self.model.d_model
        grad -= grad.mean(-1, keepdim=True)
        self.d_live = grad.addcmul_(norm.normal, along, value=-1).mul_(norm.inverse)

    def _through_mlp(self, layer: int, kept: _Kept) -> Tensor:
        """From D of a layer's MLP to dL/dread[mlp], carried: (token, width)."""
        graph, place = self.model.graph, 2 * layer + 1
        first = graph.n_before(layer)
        writer, scale = first + graph.n_heads, self.scales[place]
        grad = self.grads[1 + writer]  # D[w]   (token, width)
        # f_p = <x[w], D[w]> + <constants in x0 / s_p, D0>
        self.excess -= (grad * self.rows[1 + writer]).sum(-1, keepdim=True)
        constants = _mlp_constants(self.run, layer)
        self.excess -= _inner_of_always(self.grads, constants) / scale
        # x[w] = K_p (h - a) / s_p and live += h: dL/dh = K_p^T D[w] / s_p + dL/dlive
        d_written = self.carried.through_carried(place, grad / scale).add_(self.d_live)
        d_read = self.run.through(
            kept.mlp_written, kept.mlp_read, d_written.view_as(kept.mlp_written)
        )
        mlp_read = kept.mlp_read.detach().reshape(-1, self.model.d_model)
        d_carried = self._through_read(place, d_read.reshape(mlp_read.shape), mlp_read)
        self.grads[0] += d_carried  # D0 += dL/dread[mlp]
        # this layer's heads n: dL/dg[mlp, n] = sum_t <y[n, t], dL/dread[mlp, t]>
        heads = slice(1 + first, 1 + writer)
        gates = mlp_gates(graph, layer, self.gates)[first:]
        d_gates = mlp_gates(graph, layer, self.d_keep)[first:]
        head_rows = self.gated_rows[heads].flatten(1)
        torch.mv(head_rows, d_carried.view(-1), out=d_gates)
        # D[n] += g[mlp, n] dL/dread[mlp]
        self.grads[heads].flatten(1).addr_(gates, d_carried.view(-1))
        return d_carried

    def _through_attention(self, layer: int, kept: _Kept) -> Tensor:
        """From D of a layer's heads to s_q dL/dp, (reader, token, width)."""
        graph, folded = self.model.graph, _folded(self.run, layer)
        first, scale = graph.n_before(layer), self.scales[2 * layer]
        grad = self.grads[1 + first : 1 + first + graph.n_heads]
        # x[n] = o[n] K_p(O[n]) / s_p + constants / s_p: D[n] K_p(O[n])^T / s_p
        d_attended = torch.bmm(grad, folded.write.mT).transpose(0, 1)
        d_attended = d_attended.flatten(1) / scale  # (token, head * d_head)
        # f_p = <o, that> + <constants / s_p, D[n] and D0>
        attended = kept.attended.detach().reshape(d_attended.shape)
        self.excess -= (d_attended * attended).sum(-1, keepdim=True)
        constants = _head_constants(self.run, layer)
        inner = _inner_of_always(self.grads, constants)
        if constants.of_writers is not None:
            inner = inner + _inner_by_token(grad, constants.of_writers)
        self.excess -= inner / scale
        # live += o O + b_O: dL/do += dL/dlive O^T
        d_attended.addmm_(self.d_live, folded.plain_write.T)
        d_projected = self.run.through(
            kept.attended, kept.projected, d_attended.view_as(kept.attended)
        )
        # p - b = s_q (x0 + sum_w g x) A: e_q += sum_r <p - b, dL/dp>
        products = kept.projected.detach() - folded.read_bias
        self.excess += (d_projected * products).sum((0, 2))[:, None]
        return d_projected * scale

    def _to_writers_before(
        self, layer: int, d_projected: Tensor, d_mlp_read: Tensor
    ) -> None:
        """Through a layer's reads, tile by tile: to gates, D0 and D before the layer.

        Args:
            d_projected: s_q dL/dp, (reader, token, d_head).
            d_mlp_read: dL/dread[mlp] in carried values, (token, width); D0 has it.
        """
        graph = self.model.graph
        first, weights = graph.n_before(layer), self.run.layers[layer].read.mT
        read_gates = layer_gates(graph, layer, self.gates)  # (reader, x0 and writer)
        read_gates[-1, 0] = 0
        d_gates = torch.zeros_like(read_gates[:, 1:])
        for tokens in tiles(self.rows[0], len(read_gates)):
            # dL/dread[r, t] = s_q dL/dp[r, t] A[r]^T   (reader, tile, width)
            d_reads = self.run.tile(self.rows, len(read_gates), tokens)
            torch.bmm(d_projected[:, tokens], weights, out=d_reads[:-1])
            d_reads[-1] = d_mlp_read[tokens]
            # D[w] += sum_r g[r, w] dL/dread[r], and D0 += sum_r dL/dread[r];
            # dL/dg[r, w] += sum over the tile's t of <y[w, t], dL/dread[r, t]>
            tile_d_gates = through_reads(
                d_reads,
                read_gates,
                self.gated_rows[: 1 + first, tokens],
                self.grads[: 1 + first, tokens],
            )
            assert tile_d_gates is not None
            d_gates += tile_d_gates[:, 1:]
            self.run.buffers.give_back(d_reads)
        attention_gates(graph, layer, self.d_keep).copy_(d_gates[:-1])
        mlp_gates(graph, layer, self.d_keep)[:first] = d_gates[-1]


def _gated_rows(run: EdgeRun, rows: Tensor, scales: list[Tensor]) -> Tensor:
    """y[w, t], what a gate multiplies: x[w], or K_p(difference) / s_p; 0 in row 0."""
    if run.differences is None:
        return rows
    graph, carried = run.model.graph, _carried(run)
    gated_rows = torch.zeros_like(rows)
    for first, last, place in _places(graph):
        differences = run.differences[first:last] / scales[place]
        gated_rows[1 + first : 1 + last] = carried.carried(place, differences)
    return gated_rows


def _places(graph: ResidualGraph) -> Iterator[tuple[int, int, int]]:
    """Of every group of writers the first, the one after the last, and the place."""
    yield 0, graph.n_inputs, 0
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)
        mlp = first + graph.n_heads
        yield first, mlp, 2 * layer
        yield mlp, mlp + 1, 2 * layer + 1


def _inner_of_always(grads: Tensor, constants: _Constants) -> Tensor:
    """<D0[t], constants added to x0>, (token, 1)."""
    if constants.of_always is None:
        return grads.new_zeros(())
    return _inner_by_token(grads[:1], constants.of_always[None])


def _inner_by_token(grads: Tensor, constants: Tensor) -> Tensor:
    """sum_w <grads[w, t], constants[w, t]>: (writer, token, width) to (token, 1)."""
    if constants.shape[1] == 1:
        return torch.bmm(grads, constants.mT).sum(0)
    return (grads * constants).sum((0, 2))[:, None]
