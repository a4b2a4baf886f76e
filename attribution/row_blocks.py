"""Gradients of gates, with other gates in every block of rows of one pass.

A batch is copied once per block. In the rows of a block all units of one site have the
same gate z, and all other sites are open. At this site an activation a becomes
m = z a + (1 - z) a0, with a0 the ablation value, and the derivative of a behaviour M
with respect to the gate of a unit is the sum of (a - a0) dM/dm over its positions. A
`weights` site multiplies W with its mixed input m, and the derivative with respect to
the gate of W_ij is W_ij times the sum of (a_j - a0_j) dM/dy_i, with y the output.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.gate_gradients import Behaviour
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.gating import value_of
from circuitcut.models.residual.replayed import replayed
from circuitcut.models.sites import Site
from circuitcut.tasks.base import Batch


@dataclass(frozen=True)
class Block:
    """A copy of the batch in which the units of one site have the gate `keep`."""

    site: Site
    keep: float


def block_gradients(
    subject: Subject,
    batch: Batch,
    ablated: AblationValues,
    blocks: Sequence[Block],
    behaviour: Behaviour,
    recorded: Sequence[Any] = (),
) -> tuple[Scores, float]:
    """Derivatives of a behaviour with respect to the gates, summed over the blocks.

    One forward and one backward pass of `len(blocks)` copies of the batch.

    Args:
        ablated: The ablation values of this batch.
        blocks: Blocks of one site are next to each other.
        recorded: Outputs of the model's layers on this batch (`record_blocks`); the
            layers below the lowest site do not run.

    Returns:
        (n_units,) by site name, float64 on the CPU, and the weight of the behaviour's
        positions in one copy of the batch.
    """
    copies = {
        name: values.repeat(len(blocks), *[1] * (values.dim() - 1))
        for name, values in batch.items()
    }
    is_cuttable = subject.cuttable(batch)
    n_below = max(0, min(block.site.layer for block in blocks)) if recorded else 0
    with (
        replayed(subject.model, recorded, n_below, len(blocks)),
        _gated_blocks(subject.model, ablated, blocks, is_cuttable) as gates,
    ):
        value, weight = behaviour(subject.task.outputs(subject.model, copies))
        gradients = torch.autograd.grad(
            value, [gate.gated for gate in gates], materialize_grads=True
        )
    return {
        gate.site.name: gate.unit_gradients(gradient).double().cpu()
        for gate, gradient in zip(gates, gradients, strict=True)
    }, weight.item() / len(blocks)


@contextmanager
def _gated_blocks(
    model: nn.Module,
    ablated: AblationValues,
    blocks: Sequence[Block],
    is_cuttable: Tensor,
) -> Iterator[list["_BlockGates"]]:
    """The gates of all blocks, one entry per site, in the model inside the context."""
    by_site = groupby(enumerate(blocks), key=lambda pair: pair[1].site)
    gates: list[_BlockGates] = []
    with ExitStack() as hooks:
        for site, pairs in by_site:
            places, of_site = zip(*pairs, strict=True)
            gate = _BlockGates(
                model.get_submodule(site.module),
                site,
                [block.keep for block in of_site],
                slice(places[0], places[-1] + 1),
                len(blocks),
                value_of(ablated, site),
                is_cuttable,
            )
            gates.append(gate)
            for remove in gate.install():
                hooks.callback(remove)
        yield gates


@dataclass
class _BlockGates:
    """The gates of one site in its blocks of rows."""

    module: nn.Module
    site: Site
    keep: list[float]
    where: slice
    """The blocks of this site among all blocks of the pass."""
    n_blocks: int
    value: Tensor | None
    """The ablation value, broadcastable to the activations of a block; None is zero."""
    is_cuttable: Tensor
    """(batch, seq) or (batch,); False at positions at which no gate acts."""
    gated: Tensor = field(init=False)
    """The tensor whose gradient is needed: the mixed activations, or their product with
    W; all rows of the pass."""
    difference: Tensor = field(init=False)
    """a - a0 in the rows of this site's blocks; 0 where no gate acts."""

    def install(self) -> list[Callable[[], None]]:
        """Register the hooks; return the functions that remove them."""
        if self.site.kind == "hidden":
            return [self.module.register_forward_hook(self.on_output).remove]
        removers = [self.module.register_forward_pre_hook(self.on_input).remove]
        if self.site.kind == "weights":
            keep_output = self.module.register_forward_hook(self.on_weights_output)
            removers.append(keep_output.remove)
        return removers

    def on_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.mixed(args[0]), *args[1:])

    def on_output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.mixed(output[0]), *output[1:])
        return self.mixed(output)

    def on_weights_output(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.gated = output

    def mixed(self, x: Tensor) -> Tensor:
        """x with the activations of this site's blocks moved to the ablation value."""
        # (block, batch, ..., width); some modules see batch and seq as one axis (OPT)
        shape = (self.n_blocks, *self.is_cuttable.shape, x.shape[-1])
        a = x.detach().reshape(shape)[self.where]
        a0 = torch.zeros((), dtype=x.dtype, device=x.device)
        if self.value is not None:
            a0 = self.value.to(a)
            if a0.dim() > 1 and a.dim() > 3:
                a0 = a0[..., : a.shape[-2], :]
        acts = self.is_cuttable[None, ..., None]
        self.difference = (a - a0) * acts
        ablated_share = 1 - torch.tensor(self.keep, dtype=x.dtype, device=x.device)
        ablated_share = ablated_share.view(-1, *[1] * (a.dim() - 1))
        mixed = x.clone()
        mixed.view(shape)[self.where] = a - ablated_share * self.difference
        if not mixed.requires_grad:
            mixed.requires_grad_()
        self.gated = mixed
        return mixed

    def unit_gradients(self, gradient: Tensor) -> Float[Tensor, "unit"]:
        """The derivative of every gate from that of `gated`, summed over the blocks."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        of_blocks = gradient.unflatten(0, (self.n_blocks, -1))[self.where]
        pulled = of_blocks.to(dtype).flatten(0, -2)  # (position, width)
        difference = self.difference.to(dtype).flatten(0, -2)
        if self.site.kind != "weights":
            products = (pulled * difference).sum(0)
            return products.view(-1, self.site.unit_size).sum(1)
        weight = self.module.get_parameter("weight").detach().to(dtype)
        if isinstance(self.module, Conv1D):  # stored as (in, out)
            return (weight * (difference.T @ pulled)).flatten()
        return (weight * (pulled.T @ difference)).flatten()
