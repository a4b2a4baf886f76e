"""Large tensors that are kept from pass to pass, laid out for a CPU's cache."""

import math
from dataclasses import dataclass, field

from torch import Tensor

CACHE_LINE = 64
"""Bytes."""
PAGE_LINES = 64
"""Cache lines whose sets repeat: 4 KiB, one way of a first-level cache."""
LINES_APART = 9
"""By how many sets a row begins after the row before it: measured (LOG.md)."""


def spread_rows(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor whose rows do not all begin in the same set of a CPU's cache.

    Rows of token x d_model numbers are mostly whole pages long. A product that goes
    down a column of such rows then uses one set of the cache for all of them.
    """
    n_rows, *row = shape
    length, line = math.prod(row), CACHE_LINE // like.element_size()
    lines = -(-length // line)
    stride = (lines + (LINES_APART - lines) % PAGE_LINES) * line
    if like.device.type != "cpu":
        stride = length
    return like.new_empty(n_rows, stride)[:, :length].view(n_rows, *row)


@dataclass
class Buffers:
    """Large tensors of earlier passes, which cost more to allocate than to fill."""

    _free: list[Tensor] = field(default_factory=list)
    _n_tokens: int = 0

    def start(self, n_tokens: int) -> None:
        """A pass over that many tokens begins; buffers for another number are dropped.

        They are hardly ever needed a second time.
        """
        if n_tokens != self._n_tokens:
            self.clear()
        self._n_tokens = n_tokens

    def borrow(self, like: Tensor, *shape: int, spread: bool = False) -> Tensor:
        """A buffer of that shape, one of an earlier pass where one is free.

        Args:
            like: Has the precision and the device.
            shape: Sizes.
            spread: Rows as `spread_rows` lays them out.
        """
        for place, buffer in enumerate(self._free):
            if buffer.shape == shape and buffer.dtype == like.dtype:
                return self._free.pop(place)
        return spread_rows(like, *shape) if spread else like.new_empty(shape)

    @property
    def n_bytes(self) -> int:
        """Memory of the buffers that are free."""
        return sum(buffer.nbytes for buffer in self._free)

    def clear(self) -> None:
        """Release all of them."""
        self._free.clear()

    def give_back(self, *buffers: Tensor) -> None:
        """Buffers that nothing reads any more."""
        self._free += buffers
