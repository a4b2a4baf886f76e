"""The arithmetic of a gate: keep * x + (1 - keep) * value in one pass over x.

Plain autograd would keep several copies of x and write full-size products. Here the
forward is one fused operation. The backward undoes the operation that gave x together
with the gate, without a copy between, and reduces the gradient of the gates block by
block from an x that is recomputed where it can be. Exact at both ends: keep 1 gives x
and keep 0 the value, bit for bit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcut.masks.origins import IDENTITY, Operation, origin_of

Rows = tuple[Tensor, ...]
"""Index of the positions that are never cut, one integer vector per leading axis."""

_BLOCK = {"cpu": 2**18}
"""Elements reduced at once: on a CPU about what fits its cache, elsewhere many."""
_BLOCK_ELSEWHERE = 2**24


def mix(
    x: Float[Tensor, "*batch width"],
    keep: Float[Tensor, "width"],
    value: Float[Tensor, "..."] | None,
    rows: Rows | None,
    cut: Int[Tensor, "cut"] | None = None,
) -> Float[Tensor, "*batch width"]:
    """keep * x + (1 - keep) * value in the dtype of x; gradients for x and `keep`.

    Args:
        x: Activations.
        keep: Gates, usually float32; without a gradient x is not stored.
        value: Ablation value, broadcastable to x; None is zero.
        rows: Positions left as they are.
        cut: The entries of a finished `keep` that are 0 while all others are 1; where
            they are few, undoing those alone is cheaper.
    """
    operation, operands = origin_of(x)
    return _Mix.apply(x.detach(), keep, value, rows, cut, operation, *operands)


class _Mix(torch.autograd.Function):
    """The gate, and in the backward pass also the operation that gave x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keep: Tensor,
        value: Tensor | None,
        rows: Rows | None,
        cut: Tensor | None,
        operation: Operation,
        *operands: Tensor,
    ) -> Tensor:
        weight = keep.to(x.dtype)
        mixed = x * weight if value is None else torch.lerp(value, x, weight)
        if rows is not None:
            mixed[rows] = x[rows]
        ctx.operation, ctx.keep_dtype = operation, keep.dtype
        ctx.rows, ctx.cut = rows, cut
        needs_operands = ctx.needs_input_grad[1] or operation is not IDENTITY
        ctx.save_for_backward(weight, value, *(operands if needs_operands else ()))
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, value, *operands = ctx.saved_tensors
        wholes = ctx.operation.pull(grad, *operands) if operands else (grad,)
        # What `pull` made is ours to change; the identity hands on the gradient itself.
        grads = [
            whole * weight if whole is grad else _scaled_(whole, weight, ctx.cut)
            for whole in wholes
        ]
        if ctx.rows is not None:
            at = [operand[ctx.rows] for operand in operands] or [grad[ctx.rows]]
            spared = ctx.operation.pull(grad[ctx.rows], *at)
            for whole, part in zip(grads, spared, strict=True):
                whole[ctx.rows] = part
        total = None
        if ctx.needs_input_grad[1]:
            total = weight.new_zeros(weight.shape, dtype=ctx.keep_dtype)
            for index, sign in _parts(grad, ctx.rows):
                change = ctx.operation.make(*[operand[index] for operand in operands])
                # what `make` made anew is ours; the identity hands on the operand
                is_own = ctx.operation is not IDENTITY
                if value is not None:
                    ablated = value.expand_as(grad)[index]
                    change = change.sub_(ablated) if is_own else change - ablated
                    is_own = True
                part = grad[index]
                change = change.mul_(part) if is_own else change * part
                total.add_(_summed(change, ctx.keep_dtype), alpha=sign)
        return None, total, None, None, None, None, *grads


def _scaled_(grad: Tensor, weight: Tensor, cut: Tensor | None) -> Tensor:
    if cut is not None:
        return grad.index_fill_(-1, cut, 0.0)
    return grad.mul_(weight)


def _summed(product: Tensor, dtype: torch.dtype) -> Tensor:
    return product.sum(tuple(range(product.dim() - 1)), dtype=dtype)


def _parts(grad: Tensor, rows: Rows | None) -> Iterator[tuple[slice | Rows, int]]:
    """Blocks that together are every position, counted 1, then `rows`, counted -1."""
    size = _BLOCK.get(grad.device.type, _BLOCK_ELSEWHERE)
    n_examples = max(1, size // max(1, grad[:1].numel()))
    for start in range(0, len(grad), n_examples):
        yield slice(start, start + n_examples), 1
    if rows is not None:
        yield rows, -1
