"""Memory that passes under finished masks free goes back to the machine."""

import ctypes

import psutil
import pytest
import torch

from circuitcut.masks.edges import gating, memory
from circuitcut.masks.edges.gating import edge_gated, stack_of
from circuitcut.models.architectures import sites_of
from tests.models.tiny import tiny_model

N_BLOCKS, BLOCK = 3000, 100_000


def _resident() -> int:
    return psutil.Process().memory_info().rss


def test_freed_memory_below_what_is_in_use_goes_back_to_the_machine():
    libc = memory._glibc()
    if libc is None:
        pytest.skip("needs glibc 2.33 or later")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(N_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    # one in a hundred stays, as small results stay between the tensors of two passes
    stay = blocks[99::100]
    for number, block in enumerate(blocks, start=1):
        if number % 100:
            libc.free(block)
    freed = (N_BLOCKS - len(stay)) * BLOCK
    before = _resident()
    memory.give_back_freed()
    given = before - _resident()
    for block in stay:
        libc.free(block)
    assert given > 0.9 * freed


@pytest.mark.parametrize(("dtype", "n_given"), [(torch.bool, 2), (torch.float32, 0)])
def test_every_pass_under_a_finished_mask_gives_memory_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, n_given: int
):
    """Passes of training do not: the next step takes the same memory again."""
    given = []
    monkeypatch.setattr(gating, "give_back_freed", lambda: given.append(1))
    model = tiny_model("llama")
    (first, *_) = sites_of(model, ["edges"])
    assert first.graph is not None
    stack = stack_of(model, first.graph)
    for _ in range(2):
        with edge_gated(stack, torch.ones(first.graph.n_edges, dtype=dtype)):
            pass
    assert len(given) == n_given
