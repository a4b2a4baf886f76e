"""All blocks of a model under gates on its edges: one forward and one backward pass.

A reader v sees r_v = sum over u of [z_uv h_u + (1 - z_uv) a_u], with h_u what writer u
writes in the masked run and a_u its ablation value. What is written is kept in one
buffer, one row a writer, filled in place; a layer's reads are one matrix product of its
gates and that buffer. The backward pass is written by hand: it goes through the layers
in reverse, repeats a layer's reads, and adds up what reaches each writer in one buffer
of gradients. Plain autograd would keep a copy of the writers for every layer. Only
attention and the MLPs, which are the model's own modules, keep graphs of their own.

Encoders, whose norms sit on the stream itself, run in `encoder_stack`.

Row 0 of the buffer is always on: ablation values (rows hold h_u - a_u, so a constant
reaches every reader whatever its gates) and the biases of the output projections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from masks.edge_attention import attend
from masks.edge_gates import (
    attention_gates,
    inner,
    layer_gates,
    mlp_gates,
    output_gates,
)
from masks.edge_memory import free_bytes, token_bytes
from masks.edge_reads import centred, projected_by, scale_of, tiles
from masks.edge_run import Buffers, EdgeRun, KeptBlock
from masks.edge_sparse import SparsePlan, SparseRun
from masks.edge_weights import trained_weights
from masks.encoder_beside import run_beside
from masks.encoder_stack import EncoderStack
from models.carried_norms import CarriedNorms
from models.residual_graph import ResidualGraph
from models.residual_parts import FoldedLayer, ResidualModel


@dataclass
class _Kept(KeptBlock):
    """What a layer's backward pass needs of its forward pass."""

    scale: Tensor | None
    """1 / deviation of every read: (reader, token, 1)."""
    head_scale: tuple[Tensor, Tensor] | None
    """Of a norm on what attention writes: 1 / deviation, and the heads' sum."""
    always: Tensor
    """Row 0 as this layer's attention read it."""
    reads: list[Tensor]
    """The reads themselves, a tile each, where they are stored and not repeated."""


@dataclass
class EdgeStack:
    """The blocks of one model, ready to run under gates; weights are folded once.

    Args:
        model: The model as a residual graph.
        store_reads: Keep every layer's reads for the backward pass, which is faster
            and takes (readers x tokens x d_model) numbers a layer, or repeat them, to
            the same bits; None keeps them where half of the free memory holds them.
        layers: Weights that were folded before; none folds them now.
        carried: What was folded with them.
        buffers: Those of earlier passes.
        versions: Of the weights when they were folded.
    """

    model: ResidualModel
    store_reads: bool | None = None
    layers: list[FoldedLayer] = field(default_factory=list)
    carried: CarriedNorms | None = None
    buffers: Buffers = field(default_factory=Buffers)
    versions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            self.fold()

    def _stores(self, stream: Tensor) -> bool:
        if self.store_reads is not None:
            return self.store_reads
        if not torch.is_grad_enabled():
            return False
        n_tokens = stream.shape[0] * stream.shape[1]
        needed = n_tokens * token_bytes(self.model, stored=True)
        return 2 * needed <= free_bytes(stream.device) + self.buffers.n_bytes

    def forget_buffers(self) -> None:
        """Release the memory that is kept for the next pass."""
        self.buffers.clear()

    def fold(self) -> None:
        """Take the weights from the model again, after they changed."""
        layers = range(self.model.graph.n_layers)
        self.versions = self.model.versions()
        with torch.no_grad():
            self.layers = [self.model.fold(layer) for layer in layers]
            self.carried = None
            if self.model.is_post_norm:
                self.carried = CarriedNorms(self.model, self.layers)
                self.layers = [self.carried.fold(i) for i in layers]

    def __call__(
        self,
        stream: Float[Tensor, "batch seq d_model"],
        keep: Float[Tensor, "edge"] | Bool[Tensor, "edge"],
        attention_kwargs: Sequence[Mapping[str, Any]],
        *,
        position: Float[Tensor, "#batch seq d_model"] | None = None,
        ablated: Float[Tensor, "writer #token d_model"] | None = None,
        inside: Sequence[Tensor] = (),
        differences: Float[Tensor, "writer token d_model"] | None = None,
        plan: SparsePlan | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """What the logits read, before the final norm.

        Args:
            stream: What the embedding writes, positions included.
            keep: Gates of all edges in the graph's order; may carry a gradient.
            attention_kwargs: What the model gives each block's attention besides the
                stream: masks, position embeddings.
            position: The position embedding, where the graph has it apart.
            ablated: Ablation value of every writer, one for all tokens or one a token
                (batch * seq); None is zero.
            inside: Tensors that hooks inside the blocks use, gates of neurons and
                heads; where they take a gradient they get it.
            differences: Per edge the gates' gradient is then the inner product of its
                writer's difference and the gradient of its reader's input, instead of
                that with h_u - a_u of this pass.
            plan: How to run a finished mask `keep` for less, where nothing takes a
                gradient.
        """
        trained = None
        if torch.is_grad_enabled() and self.model.is_trained:
            trained = trained_weights(self.model)
            if self.carried is None:
                self.layers = [layer.folded.detached() for layer in trained.layers]
                self.versions = self.model.versions()
        elif self.versions != self.model.versions():  # in relearning
            self.fold()
        self.buffers.start(stream.shape[0] * stream.shape[1])
        run = EdgeRun(
            self.model,
            self.layers,
            self.carried,
            self.buffers,
            (stream.shape[0], stream.shape[1]),
            attention_kwargs,
            ablated,
            self._stores(stream),
            trained,
            differences,
            [tensor for tensor in inside if tensor.requires_grad],
        )
        if plan is not None and plan.form != "all" and not torch.is_grad_enabled():
            if self.carried is None:
                return SparseRun(run, plan, keep)(stream, position)
            run.layers = self.carried.plain
            return run_beside(run, stream, keep.to(stream))
        keep = keep.float() if keep.dtype == torch.bool else keep
        if self.carried is not None and trained is not None:
            run.layers = [layer.folded for layer in trained.layers]
            return run_beside(run, stream, keep)
        if self.carried is not None:
            return EncoderStack.apply(stream, keep, run, *run.inside)
        weights = [] if trained is None else trained.tensors
        return _Stack.apply(stream, keep, position, run, *run.inside, *weights)


class _Stack(torch.autograd.Function):
    """Forward and backward pass through all blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        keep: Tensor,
        position: Tensor | None,
        run: EdgeRun,
        *others: Tensor,
    ) -> Tensor:
        del others  # gates inside the blocks and weights: the run has them
        needs_grad = any(ctx.needs_input_grad)
        gates = keep.detach().to(stream.dtype)
        rows, read = _run_forward(run, stream, gates, position, needs_grad)
        ctx.run, ctx.dtype = run, keep.dtype
        ctx.n_positions = None if position is None else len(position)
        if needs_grad:
            ctx.save_for_backward(gates, rows)
        else:
            run.buffers.give_back(rows)
        return read.view_as(stream)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, writers = ctx.saved_tensors
        run: EdgeRun = ctx.run
        backward = _Backward(run, gates, writers, grad, ctx.needs_input_grad[1])
        for layer in reversed(range(run.model.graph.n_layers)):
            backward.through_layer(layer, run.kept.pop())
        d_stream, every_position = backward.of_inputs(grad)
        d_position = None
        if ctx.n_positions is not None:
            one = ctx.n_positions == 1  # the same for all sequences
            d_position = every_position.sum(0, keepdim=True) if one else every_position
        d_keep = backward.d_keep
        if d_keep is not None:
            d_keep = d_keep.to(ctx.dtype)
        d_weights = () if run.trained is None else run.trained.gradients()
        d_inside = run.inside_gradients()
        return d_stream, d_keep, d_position, None, *d_inside, *d_weights


def _run_forward(
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
    for layer in range(graph.n_layers):
        always = rows[0].clone()
        first = graph.n_before(layer)
        projected, scale, later, stored = _read(run, layer, gates, rows, needs_grad)
        seen = later[0]
        with torch.set_grad_enabled(needs_grad):
            projected.requires_grad_(needs_grad)
            attended = attend(run, layer, projected)
        head_scale = _write_heads(run, layer, rows, attended.detach())
        if not graph.parallel:
            own = mlp_gates(graph, layer, gates)[first:]
            _add_new(seen, rows, always, first, own)
        seen = seen.view_as(stream)
        with torch.set_grad_enabled(needs_grad):
            seen.requires_grad_(needs_grad)
            written = model.run_mlp(layer, seen)
        _write_mlp(run, layer, rows, written.detach())
        if needs_grad:
            run.kept.append(
                _Kept(
                    projected, attended, seen, written, scale, head_scale, always,
                    stored,
                )
            )  # fmt: skip
    # the last layer's reads have one more row, of what was written before that layer
    read = later[1]
    _add_new(read, rows, always, first, output_gates(graph, gates)[first:])
    return rows, read


def _add_new(
    read: Tensor, rows: Tensor, always: Tensor, first: int, own: Tensor
) -> None:
    """Complete a read by what a layer itself has written: row 0 has grown too."""
    read.add_(rows[0]).sub_(always)
    new = rows[1 + first : 1 + first + len(own)]
    read.view(-1).addmv_(new.flatten(1).T, own)


class _Backward:
    """The backward pass, from the last layer down.

    Args:
        run: The forward pass, with what every layer kept.
        gates: Gates of all edges.
        rows: What the writers wrote, row 0 the part that is always on.
        grad: Gradient of what the logits read.
        of_gates: Whether the gates' own gradient is asked for.
    """

    def __init__(
        self, run: EdgeRun, gates: Tensor, rows: Tensor, grad: Tensor, of_gates: bool
    ):
        self.run, self.gates, self.rows = run, gates, rows
        graph = run.model.graph
        n_writers = graph.n_writers
        self.arriving = grad.reshape(-1)
        # of every writer what its gates weigh
        self.weighed = rows[1:]
        if run.differences is not None:
            self.weighed = centred(run.model, run.differences)
        # of every writer's row
        self.grads = run.buffers.borrow(rows, n_writers, *rows.shape[1:], spread=True)
        self.d_keep = torch.empty_like(gates) if of_gates else None
        # what the last layer wrote; what is older is read by one more row of its reads
        last = slice(graph.n_before(graph.n_layers - 1), n_writers)
        own = output_gates(graph, gates)[last, None]
        torch.mul(own, self.arriving, out=self.grads[last].flatten(1))
        if self.d_keep is not None:
            d_own = output_gates(graph, self.d_keep)[last]
            torch.mv(self.weighed[last].flatten(1), self.arriving, out=d_own)
        # of row 0, which only weights and positions have a use for
        self.d_always = self.arriving.clone()

    def through_layer(self, layer: int, kept: _Kept) -> None:
        """From what the writers of a layer wrote to what its readers saw."""
        gates, graph = self.gates, self.run.model.graph
        first = graph.n_before(layer)
        own = slice(first, first + graph.n_heads)
        d_seen = self._through_mlp(layer, kept)
        if not graph.parallel:
            self.d_always.add_(d_seen)
            if self.d_keep is not None:
                d_own = mlp_gates(graph, layer, self.d_keep)[first:]
                torch.mv(self.weighed[own].flatten(1), d_seen, out=d_own)
            own_gates = mlp_gates(graph, layer, gates)[first:]
            self.grads[own].flatten(1).addr_(own_gates, d_seen)
        self._take_output_bias(layer)
        if graph.parallel:
            self.d_always.add_(d_seen)
        d_projected = self._through_heads(layer, kept)
        self._to_writers_before(layer, kept, d_projected, d_seen.view_as(self.rows[0]))

    def _to_writers_before(
        self, layer: int, kept: _Kept, d_projected: Tensor, d_seen: Tensor
    ) -> None:
        """Through the reads of a layer, tile by tile: to gates and earlier writers."""
        run, graph = self.run, self.run.model.graph
        first = graph.n_before(layer)
        given = _gates_of_reads(graph, layer, self.gates)
        n_readers, is_last = graph.n_attention_readers, layer + 1 == graph.n_layers
        d_gates = torch.zeros_like(given[:, 1:])
        repeated = not kept.reads and (kept.scale is not None or run.trained)
        if repeated:
            self.rows[0].copy_(kept.always)
        for place, tokens in enumerate(tiles(self.rows[0], len(given))):
            if kept.reads:
                reads = kept.reads[place]
            else:
                reads = run.tile(self.rows, len(given), tokens)
            if repeated:
                seen = self.rows[: 1 + first, tokens].flatten(1)
                torch.mm(given, seen, out=reads.flatten(1))
            of_heads = reads[:n_readers]
            if run.trained is not None:
                self._take_projections(layer, kept, d_projected, of_heads, tokens)
            _through_projection(run, layer, kept, d_projected, of_heads, tokens)
            if run.trained is not None:
                self.d_always.view_as(d_seen)[tokens] += of_heads.sum(0)
            reads[n_readers].copy_(d_seen[tokens])
            if is_last:
                reads[-1].copy_(self.arriving.view_as(d_seen)[tokens])
            if self.d_keep is not None:
                d_gates += inner(reads, self.weighed[:first, tokens])
            own = self.grads[:first, tokens].flatten(1)
            # the first to reach these writers is the last layer
            own.addmm_(given[:, 1:].T, reads.flatten(1), beta=0 if is_last else 1)
            run.buffers.give_back(reads)
        if self.d_keep is not None:
            attention_gates(graph, layer, self.d_keep).copy_(d_gates[:n_readers])
            mlp_gates(graph, layer, self.d_keep)[:first] = d_gates[n_readers]
            if is_last:
                output_gates(graph, self.d_keep)[:first] = d_gates[-1]

    def of_inputs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the input's stream and, where it is apart, of the positions."""
        model = self.run.model
        d_stream = centred(model, self.grads[0]).reshape(like.shape).clone()
        if model.graph.position == "own":
            d_position = centred(model, self.grads[1]).reshape(like.shape) - d_stream
        else:
            always = self.d_always.view(self.rows[0].shape)
            d_position = centred(model, always).reshape(like.shape) - d_stream
        self.run.buffers.give_back(self.rows, self.grads)
        return d_stream, d_position

    def _through_mlp(self, layer: int, kept: _Kept) -> Tensor:
        """Gradient of what the MLP saw, flat."""
        run, graph = self.run, self.run.model.graph
        written = self.grads[graph.n_before(layer) + graph.n_heads]
        grad = centred(run.model, written).view_as(kept.written)
        weights = () if run.trained is None else run.trained.layers[layer].mlp
        return run.through(kept.written, kept.seen, grad, weights).reshape(-1)

    def _through_heads(self, layer: int, kept: _Kept) -> Tensor:
        """Gradient of queries, keys and values, of that of what the heads write."""
        run, graph = self.run, self.run.model.graph
        folded, trained = run.layers[layer], run.trained
        first = graph.n_before(layer)
        own = slice(first, first + graph.n_heads)
        grad = self.grads[own]
        found = kept.attended.detach().reshape(-1, graph.n_heads, run.model.d_head)
        if kept.head_scale is not None:
            if trained is not None:
                plain = torch.bmm(found.transpose(0, 1), folded.write)
                d_gain = (grad * plain * kept.head_scale[0]).sum((0, 1))
                trained.add(trained.layers[layer].head_gain, d_gain)
            grad = _through_head_norm(
                run, layer, kept.head_scale, grad, self.rows[1:][own]
            )
        if trained is not None:
            # centred weights: the gradient's own mean over d_model is taken by autograd
            d_write = torch.bmm(found.permute(1, 2, 0), grad)
            trained.add(trained.layers[layer].folded.write, d_write)
        d_found = torch.bmm(grad, folded.write.transpose(1, 2)).transpose(0, 1)
        d_found = d_found.reshape(kept.attended.shape)
        weights = () if trained is None else trained.layers[layer].attention
        return run.through(kept.attended, kept.projected, d_found, weights)

    def _take_output_bias(self, layer: int) -> None:
        """Gradient of the bias of attention's output projection."""
        run, graph = self.run, self.run.model.graph
        if run.trained is None or run.layers[layer].write_bias is None:
            return
        first = graph.n_before(layer)
        if graph.attention_bias == "heads":
            d_bias = self.grads[first : first + graph.n_heads].sum((0, 1))
            d_bias = d_bias / graph.n_heads
        else:
            d_bias = self.d_always.view(self.rows[0].shape).sum(0)
        run.trained.add(run.trained.layers[layer].folded.write_bias, d_bias)

    def _take_projections(
        self,
        layer: int,
        kept: _Kept,
        d_projected: Tensor,
        reads: Tensor,
        tokens: slice,
    ) -> None:
        """Gradients of queries', keys' and values' weights and biases."""
        trained, grad = self.run.trained, d_projected[:, tokens]
        assert trained is not None
        folded = trained.layers[layer].folded
        trained.add(folded.read_bias, grad.sum(1, keepdim=True))
        scaled = grad if kept.scale is None else grad * kept.scale[:, tokens]
        trained.add(folded.read, torch.bmm(reads.transpose(1, 2), scaled))


def _read(
    run: EdgeRun, layer: int, gates: Tensor, rows: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Queries, keys and values, the reads' scales, and what is completed later.

    That is what the MLP sees, and in the last layer the logits, so far. Last come the
    reads themselves, tile by tile, where they are to be stored.
    """
    model, folded = run.model, run.layers[layer]
    given = _gates_of_reads(model.graph, layer, gates)
    n_tokens, n_readers = rows.shape[1], model.graph.n_attention_readers
    projected = rows.new_empty(n_readers, n_tokens, folded.read.shape[-1])
    # apart, for autograd keeps the first and the second is still added to
    later = [torch.empty_like(rows[0]) for _ in given[n_readers:]]
    scales, stored = [], []
    for tokens in tiles(rows[0], len(given)):
        reads = run.tile(rows, len(given), tokens)
        before = rows[: given.shape[1], tokens].flatten(1)
        torch.mm(given, before, out=reads.flatten(1))
        of_heads = reads[:n_readers]
        scale = scale_of(model, layer, of_heads)
        projected[:, tokens] = projected_by(folded, of_heads, scale)
        for read, found in zip(later, reads[n_readers:], strict=True):
            read[tokens] = found
        if scale is not None:
            scales.append(scale)
        if needs_grad and run.store_reads:
            stored.append(reads)
        else:
            run.buffers.give_back(reads)
    return projected, torch.cat(scales, 1) if scales else None, later, stored


def _gates_of_reads(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Of a layer's readers, in the last layer of the logits too: writers before it."""
    given = layer_gates(graph, layer, gates)
    if layer + 1 < graph.n_layers:
        return given
    seen = output_gates(graph, gates)[: graph.n_before(layer)]
    return torch.cat([given, torch.cat([seen.new_ones(1), seen])[None]])


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
    # a product of many matrices wants its result in one piece
    own.copy_(torch.bmm(found, folded.write))
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


def _through_head_norm(
    run: EdgeRun,
    layer: int,
    head_scale: tuple[Tensor, Tensor],
    grad: Tensor,
    written: Tensor,
) -> Tensor:
    """Through h_i = o_i * gain * s, s = 1 / root(mean square of the sum of o + eps)."""
    model = run.model
    graph = model.graph
    first = graph.n_before(layer)
    scale, total = head_scale
    values = written
    if run.ablated is not None:
        values = values + run.ablated[first : first + graph.n_heads]
    gain = model.gain(model.norm(layer, model.parts.norm_attention))
    d_scale = (grad * values).sum((0, 2))[:, None] / scale
    d_total = d_scale * (-(scale**3) / model.d_model) * total
    return grad * (gain * scale) + d_total


def _through_projection(
    run: EdgeRun,
    layer: int,
    kept: _Kept,
    d_projected: Tensor,
    reads: Tensor,
    tokens: slice,
) -> None:
    """Turn a tile of the reads into their gradient, in place.

    With R a read, s its scale and p = s R W + b: dR = s dp W^T - s^2 / d <p - b, dp> R.
    """
    folded, grad = run.layers[layer], d_projected[:, tokens]
    if kept.scale is None:
        torch.bmm(grad, folded.read.transpose(1, 2), out=reads)
        return
    scale = kept.scale[:, tokens]
    plain = kept.projected.detach()[:, tokens] - folded.read_bias
    along = (plain * grad).sum(-1, keepdim=True)
    reads.mul_(along * scale.square() * (-1 / run.model.d_model))
    reads.baddbmm_(grad * scale, folded.read.transpose(1, 2))
