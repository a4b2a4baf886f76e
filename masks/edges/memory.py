"""How much memory a pass under gates on edges takes, and how much there is.

The count is of numbers that live at once at the end of the forward pass: rows of all
writers and of their gradients, reads, what the blocks' own modules keep, and logits.
docs/edge_engine.md, section 11, has the formula.

What passes free is not always given back: tensors below 32 MB lie in the C heap, where
the small results that stay between two passes split the gaps that the large tensors of
the next pass would need. Over dozens of circuits the heap then grows by gigabytes that
nothing uses.
"""

import ctypes
from functools import cache
from typing import Any

import psutil
import torch

from circuitcut.masks.edges.read_groups import layers_of_group
from circuitcut.models.residual.folded_model import ResidualModel

OF_MLP = 4
"""Numbers an MLP's graph keeps per neuron: its input to the activation, what the
activation's pieces keep, its output; a gate beside it counts as one of them."""
OF_LOGITS = 12
"""Bytes a logit: as computed, in single precision, and its gradient."""


def token_bytes(model: ResidualModel, *, stored: bool, n_classes: int = 0) -> int:
    """Bytes a token takes in a training step of the gates.

    Args:
        model: The graph, and the precision of its weights.
        stored: Whether all layers' reads are kept for the backward pass, or those of
            one group of layers at a time.
        n_classes: Logits a token (vocabulary or tags).
    """
    graph, d_model = model.graph, model.d_model
    weight = model.write(0)
    d_mlp = max(weight.numel() for weight in model.mlp_weights(0)) // d_model
    rows = 2 * (1 + graph.n_writers) * d_model  # x0 and x[w], D0 and D[w]
    n_readers = graph.n_attention_readers + 1  # attention and MLP
    reads = n_readers * d_model
    group = layers_of_group(0, graph.n_layers, n_readers)
    reads *= graph.n_layers if stored else len(group)
    projected = graph.n_attention_readers * model.d_head  # p
    if not graph.separate_qkv:
        projected *= 3
    attended = graph.n_heads * model.d_head  # o
    # x0 of the layer, read[mlp], h of the MLP, and the MLP's own graph
    kept = projected + attended + 3 * d_model + OF_MLP * d_mlp
    numbers = rows + reads + graph.n_layers * kept
    return numbers * weight.element_size() + OF_LOGITS * n_classes


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        return free + reserved - torch.cuda.memory_allocated(device)
    available: int = psutil.virtual_memory().available
    return available


def give_back_freed(at_least: int = 2**27) -> None:
    """Give memory that is free in the C heap back to the machine.

    Only glibc on Linux can; elsewhere nothing happens.

    Args:
        at_least: Bytes below which it is not worth it.
    """
    libc = _glibc()
    if libc is not None and libc.mallinfo2().fordblks >= at_least:
        libc.malloc_trim(0)


class _Mallinfo2(ctypes.Structure):
    """The ten numbers of glibc's `mallinfo2`; `fordblks` is what is free, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@cache
def _glibc() -> Any:
    """The C library, where it is glibc 2.33 or later; else None."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _Mallinfo2
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):
        return None
    return libc
