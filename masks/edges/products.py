"""Products of gates with the rows of writers: compiled where it can be, else torch's.

A row is what one writer wrote for all tokens, (token, width) numbers in one piece; rows
need not be adjacent in memory. Those of float32 on a CPU are compiled (`products.cpp`).
Symbols and equations: docs/edge_engine.md.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.storage.compiled import library

AT_ONCE = 8
"""Tokens whose inner products are one matrix product, in torch."""
_SOURCE = Path(__file__).with_suffix(".cpp")
_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
_SIGNATURES = {
    "mix_rows": (_P, _N, _P, _N, _N, _P, _N, _I, _I, _N, _N, _P, _P, _I),
    "through_reads": (_P, _P, _N, _P, _N, _P, _N, _N, _I, _P, _N, _I, _I, _N, _I),
    "item_products": (_P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I),
}


def mix(
    out: Float[Tensor, "reader token width"],
    gates: Float[Tensor, "reader writer"],
    rows: Float[Tensor, "writer token width"],
    squares: Float[Tensor, "reader token"] | None = None,
    *,
    always: Float[Tensor, "token width"] | None = None,
) -> None:
    """out[r, t] = sum_w gates[r, w] rows[w, t].

    With `always`: out[r, t] += always[t] + sum_w gates[r, w] rows[w, t].

    Args:
        out: Filled in place.
        gates: Need not be contiguous.
        rows: x0 and x[w], or x[w] alone.
        squares: Gets |out[r, t]|^2.
        always: Of what is added to `out`, the part that all readers read.
    """
    present = [out, gates, rows] if always is None else [out, gates, rows, always]
    compiled = _compiled(*present)
    if compiled is not None and _in_one_piece(out, rows, *present[3:]):
        n_tokens, width = out.shape[1:]
        compiled.mix_rows(
            *_place(out), gates.data_ptr(), *gates.stride(), *_place(rows),
            *gates.shape, n_tokens, width,
            None if always is None else always.data_ptr(),
            None if squares is None else squares.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return
    # of shapes (reader, writer) and (writer, token * width)
    if always is None:
        torch.mm(gates, rows.flatten(1), out=out.flatten(1))
    else:
        out.flatten(1).addmm_(gates, rows.flatten(1))
        out.add_(always)
    if squares is not None:
        squares.copy_(squares_of(out))


def squares_of(reads: Float[Tensor, "reader token width"]) -> Tensor:
    """|read[r, t]|^2, (reader, token), in single precision or better."""
    wide = torch.promote_types(reads.dtype, torch.float32)
    return torch.linalg.vector_norm(reads, dim=-1, dtype=wide).square_()


def through_reads(
    d_reads: Float[Tensor, "reader token width"],
    gates: Float[Tensor, "reader writer"],
    rows: Float[Tensor, "writer token width"] | None,
    d_rows: Float[Tensor, "writer token width"] | None,
    *,
    add: bool = True,
) -> Float[Tensor, "reader writer"] | None:
    """From the gradient of reads to that of gates and of the rows that were read.

    d_gates[r, w] = sum_t <rows[w, t], d_reads[r, t]>
    d_rows[w, t] (+)= sum_r gates[r, w] d_reads[r, t]

    Args:
        d_reads: dL/dread.
        gates: Need not be contiguous.
        rows: y[w, t], what the gates multiply; without it there is no `d_gates`.
        d_rows: D[w, t], in place; without it only `d_gates` is computed.
        add: Add to what `d_rows` holds, or overwrite it.

    Returns:
        d_gates; None without `rows`.
    """
    present = [values for values in (rows, d_rows) if values is not None]
    compiled = _compiled(d_reads, gates, *present)
    if compiled is not None and _in_one_piece(d_reads, *present):
        d_gates = None if rows is None else d_reads.new_empty(gates.shape)
        compiled.through_reads(
            *_place(d_gates)[:1], *_place(rows), *_place(d_rows), gates.data_ptr(),
            *gates.stride(), int(add), *_place(d_reads), *gates.shape,
            d_reads[0].numel(), torch.get_num_threads(),
        )  # fmt: skip
        return d_gates
    if d_rows is not None:
        beta = 1 if add else 0
        # of shapes (writer, reader) and (reader, token * width)
        d_rows.flatten(1).addmm_(gates.T, d_reads.flatten(1), beta=beta)
    return None if rows is None else _inner(d_reads, rows)


def _inner(
    left: Float[Tensor, "reader token width"],
    right: Float[Tensor, "writer token width"],
) -> Float[Tensor, "reader writer"]:
    """sum_t <left[r, t], right[w, t]>.

    Piece by piece: faster than one product with a very long inner dimension.
    """
    n_tokens, width = left.shape[1:]
    at_once = math.gcd(n_tokens, AT_ONCE)
    pieces = [
        values.view(len(values), n_tokens // at_once, at_once * width)
        for values in (left, right)
    ]
    # sum over pieces of (piece, reader, inner) @ (piece, inner, writer)
    return torch.bmm(pieces[0].transpose(0, 1), pieces[1].permute(1, 2, 0)).sum(0)


def products_into(
    rows: Float[Tensor, "row token width"],
    left: Float[Tensor, "row token inner"],
    right: Float[Tensor, "row inner width"],
    factors: Float[Tensor, "row token"] | None = None,
) -> None:
    """rows[i] = left[i] @ right[i], one matrix product a row.

    With `factors`: rows[i, t] = factors[i, t] rows[i, t] + left[i, t] @ right[i].

    Args:
        rows: In place; need not be adjacent in memory.
        left: Need not be contiguous.
        right: Likewise.
        factors: Of what `rows` holds.
    """
    compiled = _compiled(rows, left, right)
    if factors is not None:
        factors = factors.contiguous()
    if compiled is not None and rows.stride(-1) == 1 and right.stride(-1) == 1:
        compiled.item_products(
            rows.data_ptr(), _numbers(rows.stride()), left.data_ptr(),
            _numbers(left.stride()), right.data_ptr(), _numbers(right.stride()),
            None if factors is None else factors.data_ptr(), len(rows),
            *left.shape[1:], rows.shape[-1], torch.get_num_threads(),
        )  # fmt: skip
    elif factors is not None:
        rows.mul_(factors[..., None]).baddbmm_(left, right)
    else:
        # into rows that are not adjacent torch would multiply one row after the other
        rows.copy_(torch.bmm(left, right))


def _numbers(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_ssize_t]:
    return (_N * len(values))(*values)


def _place(rows: Tensor | None) -> tuple[int | None, int]:
    """Address, and numbers from row to row."""
    return (None, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def _in_one_piece(*rows: Tensor) -> bool:
    """Whether every row lies in one piece of memory; a matrix is one row."""
    by_row = [values if values.dim() == 3 else values[None] for values in rows]
    return all(row.is_contiguous() for values in by_row for row in values[:1])


def _compiled(*values: Tensor) -> ctypes.CDLL | None:
    """The compiled products; None for tensors that they do not multiply."""
    if any(v.dtype != torch.float32 or v.device.type != "cpu" for v in values):
        return None
    return _library()


@cache
def _library() -> ctypes.CDLL | None:
    return library(_SOURCE, _SIGNATURES)
