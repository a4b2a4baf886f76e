"""The arithmetic of a gate: keep * x + (1 - keep) * value in one pass over x.

Plain autograd would keep several copies of x and write full-size products. Here the
forward is one fused operation; the backward undoes the gate and the operation before it
block by block, while a block is in the cache, and x is recomputed where it can be.
Exact at both ends: keep 1 gives x and keep 0 the value, bit for bit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from masks.origins import IDENTITY, Operation, origin_of

Rows = tuple[Tensor, ...]
"""Index of the positions that are never cut, one integer vector per leading axis."""

_BLOCK = {"cpu": 2**18}
"""Elements reduced at once: on a CPU what fits its cache, elsewhere much."""
_BLOCK_ELSEWHERE = 2**24


def mix(
    x: Float[Tensor, "*batch width"],
    keep: Float[Tensor, "width"],
    value: Float[Tensor, "..."] | None,
    rows: Rows | None,
) -> Float[Tensor, "*batch width"]:
    """keep * x + (1 - keep) * value in the dtype of x; gradients for x and `keep`.

    Args:
        x: Activations.
        keep: Gates, usually float32; without a gradient x is not stored.
        value: Ablation value, broadcastable to x; None is zero.
        rows: Positions left as they are.
    """
    operation, operands = origin_of(x)
    return _Mix.apply(x.detach(), keep, value, rows, operation, *operands)


class _Mix(torch.autograd.Function):
    """The gate, and in the backward pass also the operation that gave x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keep: Tensor,
        value: Tensor | None,
        rows: Rows | None,
        operation: Operation,
        *operands: Tensor,
    ) -> Tensor:
        weight = keep.to(x.dtype)
        mixed = x * weight if value is None else torch.lerp(value, x, weight)
        if rows is not None:
            mixed[rows] = x[rows]
        ctx.operation, ctx.rows, ctx.keep_dtype = operation, rows, keep.dtype
        needs_operands = ctx.needs_input_grad[1] or operation is not IDENTITY
        ctx.save_for_backward(weight, value, *(operands if needs_operands else ()))
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, value, *operands = ctx.saved_tensors
        if not operands:
            return *[None] * 5, _gated(grad, weight, ctx.rows)
        needs_gates = ctx.needs_input_grad[1]
        total = weight.new_zeros(weight.shape, dtype=ctx.keep_dtype)
        grads = [torch.empty_like(operand) for operand in operands]
        for index, sign in _parts(grad, ctx.rows):
            here, at = grad[index], [operand[index] for operand in operands]
            # the second visit of `rows` takes back what the first one did
            gated = here * weight if sign > 0 else here
            for whole, part in zip(grads, ctx.operation.pull(gated, *at), strict=True):
                whole[index] = part
            if needs_gates:
                change = ctx.operation.make(*at)
                if value is not None:
                    change = change - value.expand_as(grad)[index]
                leading = tuple(range(here.dim() - 1))
                total += sign * (change * here).sum(leading, dtype=ctx.keep_dtype)
        return None, total if needs_gates else None, None, None, None, *grads


def _gated(grad: Tensor, weight: Tensor, rows: Rows | None) -> Tensor:
    gated = grad * weight
    if rows is not None:
        gated[rows] = grad[rows]
    return gated


def _parts(grad: Tensor, rows: Rows | None) -> Iterator[tuple[slice | Rows, int]]:
    """Blocks that together are every position, counted 1, then `rows`, counted -1."""
    size = _BLOCK.get(grad.device.type, _BLOCK_ELSEWHERE)
    n_examples = max(1, size // max(1, grad[:1].numel()))
    for start in range(0, len(grad), n_examples):
        yield slice(start, start + n_examples), 1
    if rows is not None:
        yield rows, -1
