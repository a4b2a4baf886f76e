"""How an activation came about, told from what autograd keeps of it anyway.

The gradient of a gate needs the gated activation, which the plain model forgets: a GELU
keeps its input and a gated MLP its two factors. Repeating that last operation in the
backward pass costs less than storing its result, which would be a third more memory;
and doing its backward together with the gate's saves passes over memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Operation:
    """An elementwise operation and its derivative, for any part of the positions."""

    make: Callable[..., Tensor]
    """The result, of the operands."""
    pull: Callable[..., tuple[Tensor, ...]]
    """Gradients of the operands, of the result's gradient and the operands."""


def origin_of(x: Tensor) -> tuple[Operation, tuple[Tensor, ...]]:
    """The operation that gave `x`, if it is a known one, and its operands in the graph.

    Otherwise, and under saved-tensor hooks (gradient checkpointing, offloading), which
    looking at what a node stores would trigger, it is the identity of `x`.
    """
    node = x.grad_fn
    # The only way to ask; the public context managers cannot look.
    if node is None or torch._C._autograd._top_saved_tensors_default_hooks(True):
        return IDENTITY, (x,)
    if node.name() == "GeluBackward0":
        kind = node._saved_approximate
        gelu = partial(nn.functional.gelu, approximate=kind)
        return Operation(gelu, partial(_pull_gelu, kind)), (node._saved_self,)
    if node.name() == "MulBackward0":
        factors = node._saved_self, node._saved_other
        if all(_is_like(factor, x) for factor in factors):
            return Operation(torch.mul, _pull_mul), factors
    return IDENTITY, (x,)


def _same(x: Tensor) -> Tensor:
    return x


def _pull_same(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    del x
    return (grad,)


IDENTITY = Operation(_same, _pull_same)


def _pull_gelu(approximate: str, grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return (torch.ops.aten.gelu_backward(grad, x, approximate=approximate),)


def _pull_mul(grad: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
    return grad * right, grad * left


def _is_like(factor: object, x: Tensor) -> bool:
    return (
        isinstance(factor, Tensor)
        and factor.shape == x.shape
        and factor.dtype == x.dtype
    )
