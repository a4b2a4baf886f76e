"""The arithmetic of a gate: keep * x + (1 - keep) * value in one pass over x.

Plain autograd would keep several copies of x and write full-size products; here the
forward is one fused operation, the gradient of the gates is reduced block by block, and
x is recomputed where it can be. Exact at both ends: keep 1 gives x and keep 0 the
value, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from masks.recipes import recipe_of

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
    if not (keep.requires_grad and torch.is_grad_enabled()):
        return _Mix.apply(x, keep, value, rows, None)
    recipe = recipe_of(x)
    return _Mix.apply(x, keep, value, rows, recipe.make, *recipe.ingredients)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keep: Tensor,
        value: Tensor | None,
        rows: Rows | None,
        make: Callable[..., Tensor] | None,
        *ingredients: Tensor,
    ) -> Tensor:
        weight = keep.to(x.dtype)
        mixed = x * weight if value is None else torch.lerp(value, x, weight)
        if rows is not None:
            mixed[rows] = x[rows]
        ctx.save_for_backward(weight, value if ingredients else None, *ingredients)
        ctx.rows, ctx.make, ctx.keep_dtype = rows, make, keep.dtype
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, value, *ingredients = ctx.saved_tensors
        grad_x = grad_keep = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            if ctx.rows is not None:
                grad_x[ctx.rows] = grad[ctx.rows]
        if ctx.needs_input_grad[1]:
            change = _Change(ctx.make, ingredients, value)
            total = _summed(change, grad, ctx.rows)
            grad_keep = total.to(ctx.keep_dtype)
        return grad_x, grad_keep, *[None] * (3 + len(ingredients))


class _Change:
    """What a gate scales, x - value, for any part of the positions."""

    def __init__(
        self,
        make: Callable[..., Tensor],
        ingredients: list[Tensor],
        value: Tensor | None,
    ):
        self.make = make
        self.ingredients = ingredients
        self.value = value

    def __getitem__(self, index: slice | Rows) -> Tensor:
        x = self.make(*[part[index] for part in self.ingredients])
        if self.value is None:
            return x
        return x - self.value.expand_as(self.ingredients[0])[index]


def _summed(change: _Change, grad: Tensor, rows: Rows | None) -> Tensor:
    """Sum of change * grad over all positions but `rows`, block by block."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    leading = tuple(range(grad.dim() - 1))
    size = _BLOCK.get(grad.device.type, _BLOCK_ELSEWHERE)
    n_examples = max(1, size // max(1, grad[:1].numel()))
    total = torch.zeros(grad.shape[-1], dtype=dtype, device=grad.device)
    for start in range(0, len(grad), n_examples):
        block = slice(start, start + n_examples)
        total += (change[block] * grad[block]).sum(leading, dtype=dtype)
    if rows is not None:
        total -= (change[rows] * grad[rows]).sum(0, dtype=dtype)
    return total
