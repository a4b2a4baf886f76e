"""Large tensors that are kept from pass to pass, laid out for a CPU's cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CACHE_LINE = 64
"""Bytes."""
PAGE_LINES = 64
"""Cache lines whose sets repeat: 4 KiB, one way of a first-level cache."""
LINES_APART = 9
"""By how many sets a row begins after the row before it: measured (LOG.md)."""

_Pool = tuple[torch.dtype, torch.device, bool]
"""Precision, device, and whether rows are spread."""


def spread_rows(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor whose rows do not all begin in the same set of a CPU's cache.

    Rows of token x d_model numbers are mostly whole pages long. A product that goes
    down a column of such rows then uses one set of the cache for all of them.
    """
    stride = _spread_stride(like, shape[1:])
    return _laid_out(like.new_empty(shape[0] * stride), shape, stride)


def _spread_stride(like: Tensor, row: Sequence[int]) -> int:
    """Numbers from the beginning of a row to that of the next."""
    length, line = math.prod(row), CACHE_LINE // like.element_size()
    if like.device.type != "cpu":
        return length
    lines = -(-length // line)
    return (lines + (LINES_APART - lines) % PAGE_LINES) * line


def _laid_out(numbers: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """The first of the numbers as rows that begin `stride` apart."""
    in_row = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    return numbers.as_strided(shape, (stride, *in_row))


@dataclass
class Buffers:
    """Large tensors of earlier passes, which cost more to allocate than to fill.

    A buffer serves every pass that needs as much or less. A larger one takes the place
    of the smallest free one, so there are never more buffers than a single pass held
    at once, whatever the sizes of the circuits that ran.
    """

    _free: dict[_Pool, list[Tensor]] = field(default_factory=dict)
    """Vectors, (number,) each."""
    _n_tokens: int = 0

    def start(self, n_tokens: int) -> None:
        """A pass over that many tokens begins; buffers for another number are dropped.

        They are hardly ever needed a second time.
        """
        if n_tokens != self._n_tokens:
            self.clear()
        self._n_tokens = n_tokens

    def borrow(self, like: Tensor, *shape: int, spread: bool = False) -> Tensor:
        """A buffer of that shape, in the memory of an earlier pass where some is free.

        Args:
            like: Has the precision and the device.
            shape: Sizes.
            spread: Rows as `spread_rows` lays them out.
        """
        row = math.prod(shape[1:])
        stride = _spread_stride(like, shape[1:]) if spread else row
        n_numbers = shape[0] * stride
        free = self._free.get((like.dtype, like.device, stride != row), [])
        sizes = [numbers.numel() for numbers in free]
        enough = [size for size in sizes if size >= n_numbers]
        if enough:
            numbers = free.pop(sizes.index(min(enough)))
        else:
            if free:
                del free[sizes.index(min(sizes))]
            numbers = like.new_empty(n_numbers)
        return _laid_out(numbers, shape, stride)

    @property
    def n_bytes(self) -> int:
        """Memory of the buffers that are free."""
        return sum(numbers.nbytes for free in self._free.values() for numbers in free)

    def clear(self) -> None:
        """Release all of them."""
        self._free.clear()

    def give_back(self, *buffers: Tensor) -> None:
        """Buffers that `borrow` gave and nothing reads any more."""
        for buffer in buffers:
            is_spread = buffer.stride(0) != math.prod(buffer.shape[1:])
            pool = buffer.dtype, buffer.device, is_spread
            n_numbers = buffer.untyped_storage().nbytes() // buffer.element_size()
            numbers = buffer.as_strided((n_numbers,), (1,), 0)
            self._free.setdefault(pool, []).append(numbers)
