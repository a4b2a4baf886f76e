"""One pass through all blocks under gates on edges: what it is given and keeps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from masks.edge_weights import TrainedWeights
from models.carried_norms import CarriedNorms
from models.residual_parts import FoldedLayer, ResidualModel

CACHE_LINE = 64
"""Bytes."""
PAGE_LINES = 64
"""Cache lines whose sets repeat: 4 KiB, one way of a first-level cache."""
LINES_APART = 9
"""By how many sets a row begins after the one before: measured (LOG.md)."""


def spread_rows(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor whose rows do not all begin in the same set of a CPU's cache.

    Rows of token x d_model numbers are mostly whole pages long. A product that goes
    down a column of such rows then uses one set of the cache for all of them.
    """
    n_rows, *row = shape
    length, line = math.prod(row), CACHE_LINE // like.element_size()
    lines = -(-length // line)
    stride = (lines + (LINES_APART - lines) % PAGE_LINES) * line
    return like.new_empty(n_rows, stride)[:, :length].view(n_rows, *row)


@dataclass
class Buffers:
    """Large tensors of earlier passes, which cost more to allocate than to fill."""

    _free: list[Tensor] = field(default_factory=list)
    _n_tokens: int = 0

    def start(self, n_tokens: int) -> None:
        """A pass over that many tokens begins; buffers for another number are dropped.

        They will hardly be asked for again.
        """
        if n_tokens != self._n_tokens:
            self.clear()
        self._n_tokens = n_tokens

    def borrow(self, like: Tensor, *shape: int, spread: bool = False) -> Tensor:
        """A buffer of that shape, of an earlier pass where one is free.

        Args:
            like: Has the precision and the device.
            shape: Sizes.
            spread: Rows as `spread_rows` lays them out.
        """
        for place, buffer in enumerate(self._free):
            if buffer.shape == shape and buffer.dtype == like.dtype:
                return self._free.pop(place)
        if spread and like.device.type == "cpu":
            return spread_rows(like, *shape)
        return like.new_empty(shape)

    @property
    def n_bytes(self) -> int:
        """Memory that waits for the next pass."""
        return sum(buffer.nbytes for buffer in self._free)

    def clear(self) -> None:
        """Release all of them."""
        self._free.clear()

    def give_back(self, *buffers: Tensor) -> None:
        """Buffers that nothing reads any more."""
        self._free += buffers


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
    kept: list[Any] = field(default_factory=list)
    """Of every layer, the last one on top."""
    d_inside: dict[int, Tensor] = field(default_factory=dict)

    def tile(self, rows: Tensor, n_reads: int, tokens: slice) -> Tensor:
        """A buffer for the reads of some tokens: (reader, token, width)."""
        n_tokens = tokens.stop - tokens.start
        return self.buffers.borrow(rows, n_reads, n_tokens, rows.shape[-1])

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
        for weight, gradient in zip(weights, others, strict=False):
            if self.trained is not None and gradient is not None:
                self.trained.add(weight, gradient)
        for place, gradient in enumerate(others[len(weights) :]):
            if gradient is not None:
                earlier = self.d_inside.get(place)
                self.d_inside[place] = (
                    gradient if earlier is None else earlier + gradient
                )
        return d_inputs

    def inside_gradients(self) -> tuple[Tensor | None, ...]:
        """Those of `inside`; each is handed out once."""
        return tuple(self.d_inside.pop(i, None) for i in range(len(self.inside)))
