"""One pass through all blocks under gates on edges: its inputs and stored tensors.

Symbols and equations: docs/edge_engine.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.edges.buffers import Buffers
from circuitcut.masks.edges.products import mix
from circuitcut.masks.edges.weights import GradientSums, TrainedWeights
from circuitcut.models.residual.carried_norms import CarriedNorms
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel


@dataclass
class KeptBlock:
    """Graphs of a block's own modules, for the backward pass through it."""

    projected: Tensor
    """p, queries, keys and values, a leaf: (reader, token, width)."""
    attended: Tensor
    """o of all heads, with a graph to that leaf: (batch, seq, head * d_head)."""
    mlp_read: Tensor
    """read[mlp], a leaf: (batch, seq, d_model)."""
    mlp_written: Tensor
    """h of the MLP, with a graph to that leaf: (batch, seq, d_model)."""


@dataclass
class EdgeRun:
    """One forward pass, and what its backward pass needs."""

    model: ResidualModel
    layers: Sequence[FoldedLayer]
    """A, b, O, b_O and constants of every layer."""
    carried: CarriedNorms | None
    """How norms on the stream itself carry what was written; None: there are none."""
    buffers: Buffers
    shape: tuple[int, int]
    """Sequences, and tokens in each."""
    attention_kwargs: Sequence[Mapping[str, Any]]
    ablated: Float[Tensor, "writer #token d_model"] | None
    """a[w, t]; None is zero."""
    store_reads: bool
    trained: TrainedWeights | None = None
    """The base weights, where they take gradients."""
    differences: Float[Tensor, "writer token d_model"] | None = None
    """y[w, t] of the gates' gradient in place of x[w, t]; None: x[w, t]."""
    inside: Sequence[Tensor] = ()
    """Tensors that hooks inside the blocks use and that take a gradient."""
    is_open: bool = False
    """All gates are 1: every reader reads the same, and D[w, t] is the same for every
    writer, so that one row stands for all of them (attribution)."""
    kept: list[Any] = field(default_factory=list)
    """Of every layer, the last one on top."""
    d_inside: GradientSums = field(default_factory=GradientSums)

    def tile(self, rows: Tensor, n_reads: int, tokens: slice) -> Tensor:
        """A buffer for the reads of a tile of tokens: (reader, tile, width)."""
        n_tokens = tokens.stop - tokens.start
        return self.buffers.borrow(rows, n_reads, n_tokens, rows.shape[-1])

    def read(
        self,
        rows: Tensor,
        read_gates: Tensor,
        tokens: slice,
        squares: Tensor | None = None,
    ) -> Tensor:
        """read[r, t] = x0[t] + sum_w g[r, w] x[w, t], (reader, tile, width), borrowed.

        Args:
            rows: x0 and x[w], (1 + writer, token, width).
            read_gates: [1, g[r, w]] of the first writers, (reader, x0 and writer).
            tokens: The tile.
            squares: Gets |read[r, t]|^2, (reader, tile).
        """
        reads = self.tile(rows, len(read_gates), tokens)
        mix(reads, read_gates, rows[: read_gates.shape[1], tokens], squares)
        return reads

    def through(
        self,
        output: Tensor,
        inputs: Tensor,
        grad: Tensor,
        weights: Sequence[Tensor] = (),
    ) -> Tensor:
        """dL/d`inputs` of dL/d`output` = `grad`, by the graph of a block's own module.

        Gradients of `weights` and of `inside` are added to their sums.
        """
        d_inputs, *others = torch.autograd.grad(
            output, (inputs, *weights, *self.inside), grad, allow_unused=True
        )
        if self.trained is not None:
            for weight, gradient in zip(weights, others, strict=False):
                self.trained.sums.add(weight, gradient)
        for tensor, gradient in zip(self.inside, others[len(weights) :], strict=True):
            self.d_inside.add(tensor, gradient)
        return d_inputs
