"""All blocks of a model under gates on its edges: one forward and one backward pass.

    read[r] = sum_w (g[r, w] h[w] + (1 - g[r, w]) a[w]) = x0 + sum_w g[r, w] x[w]

Here reader r reads writers w, h[w] is what w writes in the masked run, a[w] its
ablation value and x[w] = h[w] - a[w]. What is written is kept in one buffer, one row a
writer, filled in place; a layer's reads are one matrix product of its gates and that
buffer. The backward pass is written by hand: it goes through the layers in reverse,
takes a layer's reads as stored or recomputes them, and adds up the gradient of every
writer in one buffer. Plain autograd would keep a copy of the writers for every layer.
Only attention and the MLPs, which are the model's own modules, keep graphs of their
own. docs/edge_engine.md derives the pass.

Encoders, whose norms sit on the stream itself, run in `encoder_stack`.

Row 0 of the buffer, x0, is always on: it holds sum_w a[w], which reaches every reader
whatever its gates, and the biases of the output projections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcut.masks.edges.backward import Backward
from circuitcut.masks.edges.buffers import Buffers
from circuitcut.masks.edges.encoder_beside import run_beside
from circuitcut.masks.edges.encoder_stack import EncoderStack
from circuitcut.masks.edges.forward import run_forward
from circuitcut.masks.edges.memory import free_bytes, token_bytes
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.masks.edges.sparse import SparsePlan, SparseRun
from circuitcut.masks.edges.weights import TrainedWeights, trained_weights
from circuitcut.models.residual.carried_norms import CarriedNorms
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel


@dataclass
class EdgeStack:
    """The blocks of one model, ready to run under gates; weights are folded once.

    Args:
        model: The model as a residual graph.
        store_reads: Store every layer's reads for the backward pass, which is faster
            and takes (readers x tokens x d_model) numbers a layer, or recompute them in
            the backward pass, to the same bits; None stores them where half of the free
            memory holds them.
        layers: Weights that were folded before; none folds them now.
        carried: Maps of the norms on the stream that were made with them.
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
        """Take the weights from the model; needed anew after they changed."""
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
        """read[logits], before the final norm.

        Args:
            stream: What the embedding writes, positions included.
            keep: Gates of all edges in the graph's order; may carry a gradient.
            attention_kwargs: What the model gives each block's attention besides the
                stream: masks, position embeddings.
            position: The position embedding, where the graph separates it.
            ablated: a[w], the ablation value of every writer, one for all tokens or one
                a token (batch * seq); None is zero.
            inside: Tensors that hooks inside the blocks use, gates of neurons and
                heads; where they take a gradient they get it.
            differences: y[w] in dL/dg[r, w] = sum_t <y[w, t], dL/dread[r, t]>; None is
                x[w] = h[w] - a[w] of this pass.
            plan: How to run a finished mask `keep` for less, where nothing takes a
                gradient.
        """
        trained = self._fold_changed()
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
        run.is_open = trained is None and bool((keep == 1).all())
        weights = [] if trained is None else trained.tensors
        return _Stack.apply(stream, keep, position, run, *run.inside, *weights)

    def _fold_changed(self) -> TrainedWeights | None:
        """Fold where a weight changed; returns the weights where they are trained."""
        if torch.is_grad_enabled() and self.model.is_trained:
            trained = trained_weights(self.model)
            if self.carried is None:
                self.layers = [layer.folded.detached() for layer in trained.layers]
                self.versions = self.model.versions()
            return trained
        if self.versions != self.model.versions():  # in relearning
            self.fold()
        return None


class _Stack(torch.autograd.Function):
    """Forward and backward pass through all blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        keep: Tensor,
        position: Tensor | None,
        run: EdgeRun,
        *inside_and_weights: Tensor,
    ) -> Tensor:
        del inside_and_weights  # the run has them
        needs_grad = any(ctx.needs_input_grad)
        gates = keep.detach().to(stream.dtype)
        rows, read = run_forward(run, stream, gates, position, needs_grad)
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
        gates, rows = ctx.saved_tensors
        run: EdgeRun = ctx.run
        backward = Backward(
            run,
            gates,
            rows,
            grad,
            of_gates=ctx.needs_input_grad[1],
            of_positions=ctx.needs_input_grad[2],
        )
        for layer in reversed(range(run.model.graph.n_layers)):
            backward.through_layer(layer, run.kept.pop())
        d_stream, d_embedding = backward.of_inputs(grad)  # (batch, seq, d_model)
        d_position = None
        if ctx.n_positions is not None:
            is_shared = ctx.n_positions == 1  # one embedding for all sequences
            d_position = d_embedding.sum(0, keepdim=True) if is_shared else d_embedding
        d_keep = backward.d_keep
        if d_keep is not None:
            d_keep = d_keep.to(ctx.dtype)
        d_weights = (
            () if run.trained is None else run.trained.sums.take(run.trained.tensors)
        )
        d_inside = run.d_inside.take(run.inside)
        return d_stream, d_keep, d_position, None, *d_inside, *d_weights
