"""From reads to queries, keys and values, in folded weights.

Symbols and equations: docs/edge_engine.md, sections 3 and 4.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from circuitcut.masks.edges.products import AT_ONCE
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel

TILE = 2**22
"""Numbers in the reads of one tile of tokens: on a CPU a part of what its last cache
holds, so that reads are projected, and their gradient is handed on, before they leave
it. Smaller tiles, and one tile of all tokens, are slower (LOG.md)."""


def tiles(tokens: Tensor, n_reads: int) -> Iterator[slice]:
    """Tiles of the tokens: `tokens` is any (token, d_model); one tile on a GPU."""
    n_tokens, width = tokens.shape
    step = n_tokens
    if tokens.device.type == "cpu":
        n_pieces = max(1, round(n_tokens * n_reads * width / TILE))
        # n_tokens / n_pieces, rounded up, then up to a multiple of AT_ONCE
        step = -(-n_tokens // n_pieces // AT_ONCE) * AT_ONCE
    for start in range(0, n_tokens, step):
        yield slice(start, min(start + step, n_tokens))


def scale_of(
    model: ResidualModel, layer: int, squares: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """s = (|read|^2 / d + eps)^(-1/2), (reader, token, 1); None without a norm.

    Args:
        squares: |read|^2, (reader, token).
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
    """p = s read A + b into `projected`, (reader, token, width)."""
    # read[r, t] A[r]   (reader, token, d_model) @ (reader, d_model, width)
    products = torch.bmm(reads, folded.read)
    if scale is None:
        torch.add(products, folded.read_bias, out=projected)
    else:
        torch.addcmul(folded.read_bias, products, scale, out=projected)


def complete(
    read: Tensor, rows: Tensor, always: Tensor, first: int, new_gates: Tensor
) -> None:
    """Add to a partial read what was written since; x0 has grown too.

    read[t] += x0[t] - always[t] + sum over w >= first of g[w] x[w, t]

    Args:
        read: (token, width), in place.
        rows: x0 and the writers, (1 + writer, token, width).
        always: x0 as the partial read has it.
        first: Number of the first writer that the partial read leaves out.
        new_gates: Gates of the writers from `first` on.
    """
    read.add_(rows[0]).sub_(always)
    new_rows = rows[1 + first : 1 + first + len(new_gates)]
    # (token * width, new writer) @ (new writer,)
    read.view(-1).addmv_(new_rows.flatten(1).T, new_gates)


def centred(model: ResidualModel, values: Tensor) -> Tensor:
    """C v = v - mean of v over d_model where the model's norms centre; else v."""
    return values - values.mean(-1, keepdim=True) if model.centred else values
