"""Buffers that are kept from pass to pass."""

import pytest
import torch

from circuitcut.masks.edges.buffers import CACHE_LINE, PAGE_LINES, Buffers, spread_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 128, 768), (3, 2, 7), (4, 1, 1), (2, 64, 16)])
def test_rows_begin_in_different_sets_of_the_cache(dtype, shape):
    rows = spread_rows(torch.empty(0, dtype=dtype), *shape)
    assert rows.shape == shape
    assert rows.dtype == dtype
    stride = rows.stride(0) * rows.element_size()
    assert stride % CACHE_LINE == 0
    assert stride // CACHE_LINE % PAGE_LINES != 0
    # a way of the cache more at most, and every row in one piece
    in_row = shape[1] * shape[2]
    assert 0 <= rows.stride(0) - in_row < 2 * CACHE_LINE * PAGE_LINES
    assert rows.stride()[1:] == (shape[2], 1)
    rows.flatten(1).copy_(torch.arange(shape[0])[:, None])
    for number, row in enumerate(rows):
        assert bool((row == number).all())


def test_a_buffer_is_reused_for_as_many_tokens_and_dropped_for_others():
    buffers, like = Buffers(), torch.empty(0)
    buffers.start(6)
    first = buffers.borrow(like, 3, 6, 4, spread=True)
    buffers.give_back(first)
    buffers.start(6)
    assert buffers.borrow(like, 3, 6, 4, spread=True).data_ptr() == first.data_ptr()
    buffers.give_back(first)
    assert buffers.n_bytes == first.untyped_storage().nbytes()
    buffers.start(7)
    assert buffers.n_bytes == 0


def test_a_smaller_need_takes_the_larger_buffer_and_a_larger_one_replaces_it():
    buffers, like = Buffers(), torch.empty(0)
    for spread in (False, True):
        large = buffers.borrow(like, 9, 6, 4, spread=spread)
        buffers.give_back(large)
        small = buffers.borrow(like, 2, 6, 4, spread=spread)
        assert small.shape == (2, 6, 4)
        assert small.stride() == large.stride()
        assert small.data_ptr() == large.data_ptr()
        buffers.give_back(small)
        n_bytes = buffers.n_bytes
        again = buffers.borrow(like, 9, 6, 4, spread=spread)  # all nine rows
        assert again.data_ptr() == large.data_ptr()
        buffers.give_back(again)
        larger = buffers.borrow(like, 10, 6, 4, spread=spread)
        buffers.give_back(larger)
        added = larger.untyped_storage().nbytes() - large.untyped_storage().nbytes()
        assert buffers.n_bytes == n_bytes + added


def test_two_lent_buffers_share_no_memory():
    buffers, like = Buffers(), torch.empty(0)
    buffers.give_back(buffers.borrow(like, 9, 6, 4))
    first, second = (buffers.borrow(like, 3, 6, 4).fill_(i) for i in range(2))
    assert bool((first == 0).all())
    assert bool((second == 1).all())


@pytest.mark.parametrize("seed", range(3))
def test_memory_is_bounded_by_what_one_pass_holds_whatever_sizes_follow(seed: int):
    buffers, like = Buffers(), torch.empty(0)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(200):
        sizes = torch.randint(1, 100, (3,), generator=rng).tolist()
        buffers.give_back(*[buffers.borrow(like, size, 6, 4) for size in sizes])
        assert buffers.n_bytes <= 3 * 100 * 6 * 4 * like.element_size()
