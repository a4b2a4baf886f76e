"""All blocks of a model under gates on its edges: one forward and one backward pass.

A reader v sees r_v = sum over u of [z_uv h_u + (1 - z_uv) a_u], with h_u what writer u
writes in the masked run and a_u its ablation value. What is written is kept in one
buffer, one row a writer, filled in place; a layer's reads are one matrix product of its
gates and that buffer. The backward pass is written by hand: it goes through the layers
in reverse, repeats a layer's reads, and adds up what reaches each writer in one buffer
of gradients. Plain autograd would keep a copy of the writers for every layer. Only
attention and the MLPs, which are the model's own modules, keep graphs of their own.

Row 0 of the buffer is always on: ablation values (rows hold h_u - a_u, so a constant
reaches every reader whatever its gates) and the biases of the output projections.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.residual_graph import ResidualGraph
from models.residual_parts import FoldedLayer, ResidualModel
from storage.errors import UserError

FEW_READERS = 16
FEW_WRITERS = 60
"""Up to here the gradient of the gates is summed token by token, which is faster than
one product with a very long inner dimension."""


@dataclass
class _Kept:
    """What a layer's backward pass needs of its forward pass."""

    projected: Tensor
    """Queries, keys and values, a leaf: (reader, token, d_head)."""
    attended: Tensor
    """What the heads found, of that leaf: (batch, seq, head * d_head)."""
    seen: Tensor
    """What the MLP read, a leaf: (batch, seq, d_model)."""
    written: Tensor
    """What the MLP wrote, of that leaf."""
    scale: Tensor | None
    """1 / deviation of every read: (reader, token, 1)."""
    head_scale: tuple[Tensor, Tensor] | None
    """Of a norm on what attention writes: 1 / deviation, and the heads' sum."""
    always: Tensor
    """Row 0 as this layer's attention read it."""
    reads: Tensor | None
    """The reads themselves, where they are stored rather than repeated."""


@dataclass
class EdgeStack:
    """The blocks of one model, ready to run under gates; weights are folded once.

    Args:
        model: The model as a residual graph.
        store_reads: Keep every layer's reads for the backward pass, which is faster
            and takes (readers x tokens x d_model) numbers a layer; else repeat them.
        layers: Weights that were folded before; none folds them now.
        free: Buffers of earlier passes.
    """

    model: ResidualModel
    store_reads: bool = False
    layers: list[FoldedLayer] = field(default_factory=list)
    free: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.layers:
            self.fold()

    def borrow(self, like: Tensor, *shape: int) -> Tensor:
        """A buffer of that shape, of an earlier pass where one is free."""
        for place, buffer in enumerate(self.free):
            if buffer.shape == shape and buffer.dtype == like.dtype:
                return self.free.pop(place)
        # a buffer of another shape will hardly be asked for again
        self.free.clear()
        return like.new_empty(shape)

    def give_back(self, *buffers: Tensor) -> None:
        """Buffers that nothing reads any more."""
        self.free += buffers

    def fold(self) -> None:
        """Take the weights from the model again, after they changed."""
        with torch.no_grad():
            self.layers = [
                self.model.fold(layer) for layer in range(self.model.graph.n_layers)
            ]

    def __call__(
        self,
        stream: Float[Tensor, "batch seq d_model"],
        keep: Float[Tensor, "edge"],
        attention_kwargs: Sequence[Mapping[str, Any]],
        *,
        position: Float[Tensor, "#batch seq d_model"] | None = None,
        ablated: Float[Tensor, "writer #token d_model"] | None = None,
        inside: Sequence[Tensor] = (),
    ) -> Float[Tensor, "batch seq d_model"]:
        """What the logits read, before the final norm.

        Gradients go to the stream, to `keep` and to `inside`, not to the weights.

        Args:
            stream: What the embedding writes, positions included.
            keep: Gates of all edges in the graph's order; may carry a gradient.
            attention_kwargs: What the model gives each block's attention besides the
                stream: masks, position embeddings.
            position: The position embedding, where the graph has it apart.
            ablated: Ablation value of every writer, one for all tokens or one a token
                (batch * seq); None is zero.
            inside: Tensors with a gradient that hooks inside the blocks use: gates of
                neurons and heads.

        Raises:
            UserError: In the backward pass, when the blocks' weights want a gradient.
        """
        run = _Run(self, _shape(stream), attention_kwargs, ablated, list(inside))
        return _Stack.apply(stream, keep, position, run, *inside)

    def writers(
        self,
        stream: Float[Tensor, "batch seq d_model"],
        attention_kwargs: Sequence[Mapping[str, Any]],
        *,
        position: Float[Tensor, "#batch seq d_model"] | None = None,
    ) -> Float[Tensor, "writer batch seq d_model"]:
        """What every writer writes while all edges are open, without a gradient.

        Arguments are those of a call. Centred where the model's norms centre.
        """
        run = _Run(self, _shape(stream), attention_kwargs, None)
        gates = stream.new_ones(self.model.graph.n_edges)
        with torch.no_grad():
            rows = _run_forward(run, stream, gates, position, False)
        return rows[1:].view(-1, *stream.shape)


@dataclass
class _Run:
    stack: EdgeStack
    shape: tuple[int, int]
    attention_kwargs: Sequence[Mapping[str, Any]]
    ablated: Tensor | None
    inside: list[Tensor] = field(default_factory=list)
    kept: list[_Kept] = field(default_factory=list)


class _Stack(torch.autograd.Function):
    """Forward and backward pass through all blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        keep: Tensor,
        position: Tensor | None,
        run: _Run,
        *inside: Tensor,
    ) -> Tensor:
        del inside  # hooks have them
        needs_grad = any(ctx.needs_input_grad)
        gates = keep.detach().to(stream.dtype)
        writers = _run_forward(run, stream, gates, position, needs_grad)
        ctx.run, ctx.dtype = run, keep.dtype
        if needs_grad:
            ctx.save_for_backward(gates, writers)
        n_writers = run.stack.model.graph.n_writers
        row = torch.cat([gates.new_ones(1), gates[-n_writers:]])
        read = (row @ writers.flatten(1)).view_as(stream)
        if not needs_grad:
            run.stack.give_back(writers)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, writers = ctx.saved_tensors
        _check_frozen(ctx.run.stack.model)
        d_stream, d_keep, d_inside = _run_backward(ctx.run, gates, writers, grad)
        ctx.run.kept.clear()
        return d_stream, d_keep.to(ctx.dtype), None, None, *d_inside


def _shape(stream: Tensor) -> tuple[int, int]:
    return stream.shape[0], stream.shape[1]


def _check_frozen(model: ResidualModel) -> None:
    if any(p.requires_grad for block in model.blocks for p in block.parameters()):
        raise UserError(
            "a model whose edges are gated gives no gradient to the weights of its "
            "blocks, which want one; call model.requires_grad_(False)"
        )


def _run_forward(
    run: _Run, stream: Tensor, gates: Tensor, position: Tensor | None, needs_grad: bool
) -> Tensor:
    """Rows of all writers; what the backward pass needs goes into `run.kept`."""
    stack, model = run.stack, run.stack.model
    graph, n_tokens = model.graph, stream.shape[0] * stream.shape[1]
    rows = stack.borrow(stream, 1 + graph.n_writers, n_tokens, model.d_model)
    _write_inputs(run, rows, stream, position)
    n_reads = graph.n_attention_readers + 1
    reads: Tensor | None = None
    for layer in range(graph.n_layers):
        if reads is None or (needs_grad and stack.store_reads):
            reads = stack.borrow(stream, n_reads, n_tokens, model.d_model)
        _read(graph, layer, gates, rows, reads)
        always = rows[0].clone()
        scale = _scale(model, layer, reads[:-1])
        with torch.set_grad_enabled(needs_grad):
            projected, attended = _attend(run, layer, reads[:-1], scale)
        head_scale = _write_heads(run, layer, rows, attended.detach())
        seen = reads[-1]
        if not graph.parallel:
            first = graph.n_before(layer)
            own = _mlp_gates(graph, layer, gates)[first:]
            seen = seen + (rows[0] - always)
            new = rows[1 + first : 1 + first + graph.n_heads]
            seen.view(-1).addmv_(new.flatten(1).T, own)
        seen = seen.view_as(stream)
        with torch.set_grad_enabled(needs_grad):
            if needs_grad:
                seen = seen.clone().requires_grad_()
            written = model.run_mlp(layer, seen)
        _write_mlp(run, layer, rows, written.detach())
        if needs_grad:
            stored = reads if stack.store_reads else None
            run.kept.append(
                _Kept(
                    projected, attended, seen, written, scale, head_scale, always,
                    stored,
                )
            )  # fmt: skip
    if reads is not None and not (needs_grad and stack.store_reads):
        stack.give_back(reads)
    return rows


def _run_backward(
    run: _Run, gates: Tensor, rows: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of the input's stream, of the gates, and of what is inside."""
    stack, model = run.stack, run.stack.model
    graph, n_heads = model.graph, model.graph.n_heads
    arriving = grad.reshape(-1)
    # of every writer's row
    grads = stack.borrow(rows, graph.n_writers, *rows.shape[1:])
    d_keep = torch.empty_like(gates)
    d_inside = [torch.zeros_like(tensor) for tensor in run.inside]
    torch.mul(gates[-graph.n_writers :, None], arriving, out=grads.flatten(1))
    torch.mv(rows[1:].flatten(1), arriving, out=d_keep[-graph.n_writers :])
    for layer in reversed(range(graph.n_layers)):
        kept = run.kept.pop()
        first = graph.n_before(layer)
        own = slice(first, first + n_heads)
        d_written = _centred(model, grads[first + n_heads]).view_as(kept.written)
        d_seen = _pulled(run, kept.written, kept.seen, d_written, d_inside)
        d_seen = d_seen.reshape(-1)
        d_mlp = _mlp_gates(graph, layer, d_keep)
        if not graph.parallel:
            torch.mv(rows[1:][own].flatten(1), d_seen, out=d_mlp[first:])
            own_gates = _mlp_gates(graph, layer, gates)[first:]
            grads[own].flatten(1).addr_(own_gates, d_seen)
        d_attended = _through_heads(run, layer, kept, grads[own], rows[1:][own])
        d_projected = _pulled(run, kept.attended, kept.projected, d_attended, d_inside)
        reads = kept.reads
        if reads is None:
            n_reads = graph.n_attention_readers + 1
            reads = stack.borrow(rows, n_reads, *rows.shape[1:])
            if kept.scale is not None:
                rows[0].copy_(kept.always)
                _read(graph, layer, gates, rows, reads)
        _through_projection(run, layer, kept, d_projected, reads[:-1])
        reads[-1].view(-1).copy_(d_seen)
        before = rows[1 : 1 + first]
        d_gates = _inner(reads, before)
        _attention_gates(graph, layer, d_keep).copy_(d_gates[:-1])
        d_mlp[:first] = d_gates[-1]
        seen_gates = _layer_gates(graph, layer, gates)[:, 1:]
        grads[:first].flatten(1).addmm_(seen_gates.T, reads.flatten(1))
        stack.give_back(reads)
    d_stream = _centred(model, grads[0]).reshape(grad.shape).clone()
    stack.give_back(rows, grads)
    return d_stream, d_keep, d_inside


def _pulled(
    run: _Run, output: Tensor, leaf: Tensor, grad: Tensor, d_inside: list[Tensor]
) -> Tensor:
    """Gradient of a leaf through a part of a block; those of `inside` add up."""
    found, *others = torch.autograd.grad(
        output, [leaf, *run.inside], grad, allow_unused=True
    )
    for total, part in zip(d_inside, others, strict=True):
        if part is not None:
            total.add_(part)
    return found


def _attention_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's attention: (reader, writer before the layer)."""
    n, before = graph.n_attention_readers, graph.n_before(layer)
    start = graph.offsets[layer]
    return gates[start : start + n * before].view(n, before)


def _mlp_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """Gates of a layer's MLP: (writer,), the layer's own heads last."""
    stop = graph.offsets[layer + 1]
    return gates[stop - graph.n_seen_by_mlp(layer) : stop]


def _layer_gates(graph: ResidualGraph, layer: int, gates: Tensor) -> Tensor:
    """(reader and MLP, always on and writer before the layer)."""
    attention = _attention_gates(graph, layer, gates)
    mlp = _mlp_gates(graph, layer, gates)[: graph.n_before(layer)]
    together = torch.cat([attention, mlp[None]])
    return torch.cat([together.new_ones(len(together), 1), together], 1)


def _read(
    graph: ResidualGraph, layer: int, gates: Tensor, rows: Tensor, out: Tensor
) -> None:
    """What attention's readers see, and of what the MLP sees the part before them."""
    seen = rows[: 1 + graph.n_before(layer)].flatten(1)
    torch.mm(_layer_gates(graph, layer, gates), seen, out=out.flatten(1))


def _scale(model: ResidualModel, layer: int, reads: Tensor) -> Tensor | None:
    """1 / root of (mean square + eps) of every read; None where there is no norm."""
    norm = model.norm(layer, model.parts.norm_in)
    if norm is None:
        return None
    wide = torch.promote_types(reads.dtype, torch.float32)
    length = torch.linalg.vector_norm(reads, dim=-1, keepdim=True, dtype=wide)
    scale = (length.square() / model.d_model + model.eps(norm)).rsqrt()
    return scale.to(reads.dtype)


def _attend(
    run: _Run, layer: int, reads: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Queries, keys, values of the reads (a leaf), and what the heads find."""
    model, folded = run.stack.model, run.stack.layers[layer]
    with torch.no_grad():
        projected = torch.bmm(reads, folded.read)
        if scale is not None:
            projected.mul_(scale)
        projected.add_(folded.read_bias)
    projected.requires_grad_(torch.is_grad_enabled())
    given = _as_projected(run, projected)
    attention = model.attention(layer)
    with (
        _answering(model.projections(layer), given, model.output(layer)),
        _ungrouped(attention, model.graph),
    ):
        # only the shape of the first argument is read
        shaped = reads[0].view(*run.shape, model.d_model)
        attended = attention(shaped, **run.attention_kwargs[layer])[0]
    return projected, attended


def _as_projected(run: _Run, projected: Tensor) -> list[Tensor]:
    """The projections' outputs as the model's attention takes them."""
    model = run.stack.model
    graph, d_head = model.graph, model.d_head
    n_tokens = projected.shape[1]
    groups = graph.n_kv_heads
    if not graph.apart:
        groups = graph.n_heads
        projected = projected.view(graph.n_heads, n_tokens, 3, d_head)
        projected = projected.permute(2, 0, 1, 3).reshape(-1, n_tokens, d_head)
    if model.parts.fused == "by head":
        by_head = projected.view(3, graph.n_heads, n_tokens, d_head)
        return [by_head.permute(2, 1, 0, 3).reshape(*run.shape, -1)]
    parts = [projected]
    if model.parts.fused == "apart":
        parts = list(projected.split([graph.n_heads, groups, groups]))
    return [part.transpose(0, 1).reshape(*run.shape, -1) for part in parts]


@contextmanager
def _answering(
    projections: Sequence[Any], values: Sequence[Tensor], output: Any
) -> Iterator[None]:
    """Projections that give these values; an output projection that does nothing."""
    replaced = [*projections, output]
    earlier = [vars(module).get("forward") for module in replaced]
    for module, value in zip(projections, values, strict=True):
        vars(module)["forward"] = partial(_given, value)
    vars(output)["forward"] = _unchanged
    try:
        yield
    finally:
        for module, forward in zip(replaced, earlier, strict=True):
            vars(module).pop("forward")
            if forward is not None:
                vars(module)["forward"] = forward


def _given(value: Tensor, _: Tensor) -> Tensor:
    return value


def _unchanged(x: Tensor) -> Tensor:
    return x


@contextmanager
def _ungrouped(attention: Any, graph: ResidualGraph) -> Iterator[None]:
    """Attention with a key and a value for every query head, where they are merged."""
    if graph.apart or graph.n_kv_heads == graph.n_heads:
        yield
        return
    names = {"num_key_value_groups": 1, "num_key_value_heads": graph.n_heads}
    earlier = {name: vars(attention)[name] for name in names if name in vars(attention)}
    vars(attention).update({name: names[name] for name in earlier})
    try:
        yield
    finally:
        vars(attention).update(earlier)


def _write_inputs(
    run: _Run, rows: Tensor, stream: Tensor, position: Tensor | None
) -> None:
    model = run.stack.model
    shape = (len(rows[0]), model.d_model)
    rows[0].zero_()
    if position is None:
        rows[1].copy_(stream.reshape(shape))
    else:
        apart = position.expand_as(stream).reshape(shape)
        torch.sub(stream.reshape(shape), apart, out=rows[1])
        if model.graph.position == "own":
            rows[2].copy_(_centred(model, apart))
        else:
            rows[0].copy_(_centred(model, apart))
    if model.centred:
        rows[1].sub_(rows[1].mean(-1, keepdim=True))
    _ablate(run, rows, slice(0, model.graph.n_inputs))


def _write_heads(
    run: _Run, layer: int, rows: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Fill the rows of a layer's heads and row 0; the scale of a norm on them."""
    model, folded = run.stack.model, run.stack.layers[layer]
    graph = model.graph
    first = graph.n_before(layer)
    own = rows[1 + first : 1 + first + graph.n_heads]
    found = attended.reshape(-1, graph.n_heads, model.d_head).transpose(0, 1)
    torch.bmm(found, folded.write, out=own)
    head_scale = None
    norm = model.norm(layer, model.parts.norm_attention)
    if norm is not None:
        total = own.sum(0)
        scale = (total.square().mean(-1, keepdim=True) + model.eps(norm)).rsqrt()
        own.mul_(scale).mul_(model.gain(norm))
        head_scale = scale, total
    if folded.write_bias is not None:
        if graph.attention_bias == "heads":
            own.add_(folded.write_bias / graph.n_heads)
        else:
            rows[0].add_(folded.write_bias)
    _ablate(run, rows, slice(first, first + graph.n_heads))
    return head_scale


def _write_mlp(run: _Run, layer: int, rows: Tensor, written: Tensor) -> None:
    model = run.stack.model
    place = model.graph.n_before(layer) + model.graph.n_heads
    rows[1 + place].copy_(_centred(model, written.reshape(-1, model.d_model)))
    _ablate(run, rows, slice(place, place + 1))


def _ablate(run: _Run, rows: Tensor, writers: slice) -> None:
    """Take the ablation values out of the writers' rows into the row always on."""
    if run.ablated is not None:
        values = _centred(run.stack.model, run.ablated[writers])
        rows[1:][writers].sub_(values)
        rows[0].add_(values.sum(0))


def _centred(model: ResidualModel, values: Tensor) -> Tensor:
    """Values without their mean over d_model, where the model's norms take it away."""
    return values - values.mean(-1, keepdim=True) if model.centred else values


def _through_heads(
    run: _Run, layer: int, kept: _Kept, grad: Tensor, written: Tensor
) -> Tensor:
    """Gradient of what the heads found, of that of what they write."""
    folded = run.stack.layers[layer]
    if kept.head_scale is not None:
        grad = _through_head_norm(run, layer, kept.head_scale, grad, written)
    d_found = torch.bmm(grad, folded.write.transpose(1, 2)).transpose(0, 1)
    return d_found.reshape(kept.attended.shape)


def _through_head_norm(
    run: _Run,
    layer: int,
    head_scale: tuple[Tensor, Tensor],
    grad: Tensor,
    written: Tensor,
) -> Tensor:
    """Through h_i = o_i * gain * s, s = 1 / root(mean square of the sum of o + eps)."""
    model = run.stack.model
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
    run: _Run, layer: int, kept: _Kept, grad: Tensor, reads: Tensor
) -> None:
    """Turn the reads into their gradient, in place.

    With R a read, s its scale and p = s R W + b: dR = s dp W^T - s^2 / d <p - b, dp> R.
    """
    folded = run.stack.layers[layer]
    if kept.scale is None:
        torch.bmm(grad, folded.read.transpose(1, 2), out=reads)
        return
    plain = kept.projected.detach() - folded.read_bias
    along = (plain * grad).sum(-1, keepdim=True)
    reads.mul_(along * kept.scale.square() * (-1 / run.stack.model.d_model))
    reads.baddbmm_(grad * kept.scale, folded.read.transpose(1, 2))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner products over tokens and d_model: (a, t, d), (b, t, d) -> (a, b)."""
    if len(left) <= FEW_READERS or len(right) < FEW_WRITERS:
        products = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))
        return products.sum(0)
    return left.flatten(1) @ right.flatten(1).T
