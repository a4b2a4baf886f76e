"""One pass through all blocks under gates on edges: what it is given and keeps."""

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
    """Queries, keys and values, a leaf: (reader, token, d_head)."""
    attended: Tensor
    """What the heads found, of that leaf: (batch, seq, head * d_head)."""
    seen: Tensor
    """What the MLP read, a leaf: (batch, seq, d_model)."""
    written: Tensor
    """What the MLP wrote, of that leaf."""


@dataclass
class EdgeRun:
    """One forward pass, and what its backward pass needs."""

    model: ResidualModel
    layers: Sequence[FoldedLayer]
    carried: CarriedNorms | None
    """How norms on the stream itself carry what was written; None: there are none."""
    buffers: Buffers
    shape: tuple[int, int]
    """Sequences, and tokens in each."""
    attention_kwargs: Sequence[Mapping[str, Any]]
    ablated: Float[Tensor, "writer #token d_model"] | None
    store_reads: bool
    trained: TrainedWeights | None = None
    """The base weights, where they take gradients."""
    differences: Float[Tensor, "writer token d_model"] | None = None
    """What the gates' gradient takes for h_u - a_u; None: the run's own."""
    inside: Sequence[Tensor] = ()
    """Tensors that hooks inside the blocks use and that take a gradient."""
    is_open: bool = False
    """All gates are 1: every reader sees the same, and every writer's gradient is the
    same, so that one sum stands for all of them (attribution)."""
    kept: list[Any] = field(default_factory=list)
    """Of every layer, the last one on top."""
    d_inside: GradientSums = field(default_factory=GradientSums)

    def tile(self, rows: Tensor, n_reads: int, tokens: slice) -> Tensor:
        """A buffer for the reads of some tokens: (reader, token, width)."""
        n_tokens = tokens.stop - tokens.start
        return self.buffers.borrow(rows, n_reads, n_tokens, rows.shape[-1])

    def read(
        self,
        rows: Tensor,
        given: Tensor,
        tokens: slice,
        squares: Tensor | None = None,
    ) -> Tensor:
        """The reads of some tokens, in a buffer: (reader, token, width).

        Args:
            rows: Of the writers, row 0 the part that is always on.
            given: Gates of the first of them, (reader, always on and writer).
            tokens: Which.
            squares: Gets every read's sum of squares, (reader, token).
        """
        reads = self.tile(rows, len(given), tokens)
        mix(reads, given, rows[: given.shape[1], tokens], squares)
        return reads

    def through(
        self,
        output: Tensor,
        inputs: Tensor,
        grad: Tensor,
        weights: Sequence[Tensor] = (),
    ) -> Tensor:
        """Gradient of `inputs` through a part of a block; the others are taken."""
        d_inputs, *others = torch.autograd.grad(
            output, (inputs, *weights, *self.inside), grad, allow_unused=True
        )
        if self.trained is not None:
            for weight, gradient in zip(weights, others, strict=False):
                self.trained.sums.add(weight, gradient)
        for tensor, gradient in zip(self.inside, others[len(weights) :], strict=True):
            self.d_inside.add(tensor, gradient)
        return d_inputs
