"""From what a reader sees to queries, keys and values, in folded weights."""

from collections.abc import Iterator

import torch
from torch import Tensor

from circuitcut.masks.edges.products import AT_ONCE
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel

TILE = 2**22
"""Numbers in the reads of one piece of the tokens: on a CPU a part of what its last
cache holds, so that reads are projected, and their gradient is handed on, before they
leave it. Smaller pieces, and none at all, are slower (LOG.md)."""


def tiles(tokens: Tensor, n_reads: int) -> Iterator[slice]:
    """Pieces of the tokens: `tokens` is any (token, d_model); one piece on a GPU."""
    n_tokens, width = tokens.shape
    step = n_tokens
    if tokens.device.type == "cpu":
        n_pieces = max(1, round(n_tokens * n_reads * width / TILE))
        step = -(-n_tokens // n_pieces // AT_ONCE) * AT_ONCE
    for start in range(0, n_tokens, step):
        yield slice(start, min(start + step, n_tokens))


def scale_of(
    model: ResidualModel, layer: int, squares: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """1 / root of (mean square + eps) of every read; None where there is no norm.

    Args:
        squares: Sums of squares, (reader, token).
        dtype: Of the reads.
    """
    norm = model.norm(layer, model.parts.norm_in)
    if norm is None:
        return None
    scale = (squares[..., None] / model.d_model + model.eps(norm)).rsqrt()
    return scale.to(dtype)


def project_into(
    projected: Tensor, folded: FoldedLayer, reads: Tensor, scale: Tensor | None
) -> None:
    """Queries, keys and values of the reads, (reader, token, width)."""
    found = torch.bmm(reads, folded.read)
    if scale is None:
        torch.add(found, folded.read_bias, out=projected)
    else:
        torch.addcmul(folded.read_bias, found, scale, out=projected)


def complete(
    read: Tensor, rows: Tensor, always: Tensor, first: int, own: Tensor
) -> None:
    """Add what was written since to a read of older writers: row 0 has grown too.

    Args:
        read: (token, width), in place.
        rows: Of the writers.
        always: Row 0 as the read saw it.
        first: Number of the first writer that it did not see.
        own: Gates of that one and of those after it.
    """
    read.add_(rows[0]).sub_(always)
    new = rows[1 + first : 1 + first + len(own)]
    read.view(-1).addmv_(new.flatten(1).T, own)


def centred(model: ResidualModel, values: Tensor) -> Tensor:
    """Values without their mean over d_model, where the model's norms take it away."""
    return values - values.mean(-1, keepdim=True) if model.centred else values
