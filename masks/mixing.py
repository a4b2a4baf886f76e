"""The arithmetic of a gate, y = keep * x + (1 - keep) * value, with a fused backward.

Autograd alone would store several copies of x and write products of the full size. Here
the forward pass is one fused operation. The backward pass computes the gradients of the
gate and of the operation that produced x together. It sums the gradient of the gates,

    dL/dkeep_i = sum over positions of (x_i - value_i) dL/dy_i,

block by block; x is recomputed in the backward pass where possible. The result is
exact at both ends: keep = 1 gives x and keep = 0 gives the value, bit for bit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcut.masks.origins import IDENTITY, Operation, origin_of

Rows = tuple[Tensor, ...]
"""Index of the positions at which no gate acts, one integer vector per leading axis."""

_BLOCK = {"cpu": 2**18}
"""Number of elements in a block; on a CPU a block fits about into its cache."""
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
        keep: Gates, usually float32; if they need no gradient, x is not stored.
        value: Ablation value, broadcastable to x; None means zero.
        rows: Positions at which x does not change.
        cut: Only for a frozen `keep` of zeros and ones: the indices of the zeros. For
            few zeros, setting their gradients to 0 is faster than a product.
    """
    operation, operands = origin_of(x)
    return _Mix.apply(x.detach(), keep, value, rows, cut, operation, *operands)


class _Mix(torch.autograd.Function):
    """The gate; its backward pass includes the operation that produced x."""

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
        # gradients of the operands without the gate, (*batch, width) each
        ungated = ctx.operation.pull(grad, *operands) if operands else (grad,)
        # `pull` returns new tensors, which may be changed in place; the identity
        # returns `grad` itself, which may not
        operand_grads = [
            part * weight if part is grad else _scaled_(part, weight, ctx.cut)
            for part in ungated
        ]
        if ctx.rows is not None:  # no gate acts at these positions
            at_rows = [operand[ctx.rows] for operand in operands] or [grad[ctx.rows]]
            row_grads = ctx.operation.pull(grad[ctx.rows], *at_rows)
            for operand_grad, row_grad in zip(operand_grads, row_grads, strict=True):
                operand_grad[ctx.rows] = row_grad
        keep_grad = None
        if ctx.needs_input_grad[1]:
            # sum over positions of (x - value) dL/dy, (width,)
            keep_grad = weight.new_zeros(weight.shape, dtype=ctx.keep_dtype)
            for index, sign in _blocks(grad, ctx.rows):
                product = ctx.operation.make(*[operand[index] for operand in operands])
                # `make` returns a new tensor, except for the identity
                is_new = ctx.operation is not IDENTITY
                if value is not None:
                    ablated = value.expand_as(grad)[index]
                    product = product.sub_(ablated) if is_new else product - ablated
                    is_new = True
                block_grad = grad[index]
                product = product.mul_(block_grad) if is_new else product * block_grad
                keep_grad.add_(_summed(product, ctx.keep_dtype), alpha=sign)
        return None, keep_grad, None, None, None, None, *operand_grads


def _scaled_(grad: Tensor, weight: Tensor, cut: Tensor | None) -> Tensor:
    if cut is not None:
        return grad.index_fill_(-1, cut, 0.0)
    return grad.mul_(weight)


def _summed(product: Tensor, dtype: torch.dtype) -> Tensor:
    return product.sum(tuple(range(product.dim() - 1)), dtype=dtype)


def _blocks(grad: Tensor, rows: Rows | None) -> Iterator[tuple[slice | Rows, int]]:
    """Blocks of all positions with sign 1, then `rows` with sign -1."""
    size = _BLOCK.get(grad.device.type, _BLOCK_ELSEWHERE)
    n_examples = max(1, size // max(1, grad[:1].numel()))
    for start in range(0, len(grad), n_examples):
        yield slice(start, start + n_examples), 1
    if rows is not None:
        yield rows, -1
