"""The arithmetic of a gate: keep * x + (1 - keep) * value in one pass over x.

Plain autograd would keep several copies of x and write full-size products; here the
forward is one fused operation and the gradient of the gates is reduced block by block.
Exact at both ends: keep 1 gives x and keep 0 gives the value, bit for bit.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = tuple[Tensor, ...]
"""Index of the positions that are never cut, one integer vector per leading axis."""

_BLOCK = {"cpu": 2**17}
_BLOCK_ELSEWHERE = 2**24


def mix(
    x: Float[Tensor, "*batch width"],
    keep: Float[Tensor, "width"],
    value: Float[Tensor, "*#batch width"] | None,
    rows: Rows | None,
) -> Float[Tensor, "*batch width"]:
    """keep * x + (1 - keep) * value in the dtype of x; gradients for x and `keep`.

    Args:
        keep: Float32 gates; their gradient is accumulated in float32 (float64 for
            float64).
        value: Broadcastable to x; None is zero.
        rows: Positions left as they are.
    """
    return _Mix.apply(x, keep.to(x.device), value, rows)


def mix_frozen(
    x: Float[Tensor, "*batch width"],
    keep: Bool[Tensor, "width"],
    value: Float[Tensor, "*#batch width"] | None,
    rows: Rows | None,
) -> Float[Tensor, "*batch width"]:
    """`mix` for a finished mask: nothing is stored but the mask."""
    kept = keep.to(device=x.device)
    if rows is not None:
        return _Mix.apply(x, kept.float(), value, rows)
    if value is None:
        return x * kept.to(x.dtype)
    return torch.where(kept, x, value)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keep: Tensor, value: Tensor | None, rows: Rows | None
    ) -> Tensor:
        weight = keep.to(x.dtype)
        mixed = x * weight if value is None else torch.lerp(value, x, weight)
        if rows is not None:
            mixed[rows] = x[rows]
        needs_x = ctx.needs_input_grad[1]
        ctx.save_for_backward(
            weight, x if needs_x else None, value if needs_x else None
        )
        ctx.rows = rows
        return mixed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, x, value = ctx.saved_tensors
        grad_x = grad_keep = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            if ctx.rows is not None:
                grad_x[ctx.rows] = grad[ctx.rows]
        if ctx.needs_input_grad[1]:
            grad_keep = _gate_gradient(grad, x, value, ctx.rows)
        return grad_x, grad_keep, None, None


def _gate_gradient(
    grad: Tensor, x: Tensor, value: Tensor | None, rows: Rows | None
) -> Tensor:
    """Sum of grad * (x - value) over all positions but `rows`, block by block."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    leading = tuple(range(grad.dim() - 1))
    size = _BLOCK.get(grad.device.type, _BLOCK_ELSEWHERE)
    n_examples = max(1, size // max(1, grad[:1].numel()))
    per_example = value is not None and value.dim() == grad.dim()
    total = torch.zeros(grad.shape[-1], dtype=dtype, device=grad.device)
    for start in range(0, len(grad), n_examples):
        block = slice(start, start + n_examples)
        change = x[block]
        if value is not None:
            change = change - (value[block] if per_example else value)
        total += (change * grad[block]).sum(leading, dtype=dtype)
    if rows is not None:
        untouched = x[rows]
        if value is not None:
            untouched = untouched - value.expand_as(x)[rows]
        total -= (untouched * grad[rows]).sum(0, dtype=dtype)
    return total
