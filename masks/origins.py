"""The operation that produced an activation, with the operands that autograd stores.

The gradient of a gate needs the gated activation. The model itself does not store it: a
GELU stores its input, and a gated MLP its two factors. The activation is therefore
recomputed in the backward pass. Storing it would take a third more memory. The backward
passes of this operation and of the gate are computed together, which saves memory
traffic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Operation:
    """An elementwise operation and its derivative, for any subset of the positions."""

    make: Callable[..., Tensor]
    """Function from the operands to the result."""
    pull: Callable[..., tuple[Tensor, ...]]
    """Function from the result's gradient and the operands to the operands' gradients.
    """


def origin_of(x: Tensor) -> tuple[Operation, tuple[Tensor, ...]]:
    """The operation that produced `x`, and its operands in the autograd graph.

    For an unknown operation it is the identity of `x`. The same holds under hooks on
    saved tensors (gradient checkpointing, offloading): reading the tensors of a node
    would trigger these hooks.
    """
    node = x.grad_fn
    # A private function, because no public one tells whether such hooks are set.
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
