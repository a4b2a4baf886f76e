"""A lasting cut: ablated values stay on and the weights behind them cannot change.

While `held`, an ablated unit hands its ablation value to the projection, and the
projection's weights that read the unit (for `weights` sites the ablated weights
themselves) get no gradient, no momentum and no decay. Weights elsewhere train. With
adapters (`lora.py`) the columns of A that read the unit stay 0 in the same way. Under a
mask with a rule the unit changes as the rule says, and the weights that read it are
frozen at all tokens.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.relearning.lora import columns, has_adapter
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class Frozen:
    """Entries of one parameter that must keep their values."""

    parameter: nn.Parameter
    where: Tensor
    """Bool, the shape of the parameter."""
    values: Tensor
    """The values to keep, in the order of `parameter[where]`."""

    def restore_(self) -> None:
        """Write the kept values back, whatever an optimiser did to them."""
        with torch.no_grad():
            self.parameter[self.where] = self.values


def check_holdable(mask: FrozenMask, holdings: Set[str]) -> None:
    """Refuse a mask under which, or after which, weights cannot train.

    Args:
        mask: What is cut.
        holdings: How it is to be held: `lasting`, `one_shot`.

    Raises:
        UserError: When it takes its values from paired inputs, or cuts edges or follows
            a rule and is to be written into the weights.
    """
    if mask.ablated.kind == "counterfactual":
        raise UserError(
            "a mask with counterfactual ablation values cannot be held in relearning: "
            "they come from paired inputs, which relearning data do not have; train "
            "one with --ablation zero or mean"
        )
    if mask.ablated.rule is not None and "one_shot" in holdings:
        raise UserError(
            f"a mask that ablates by a rule ({mask.ablated.kind}, "
            f"{mask.ablated.rule.condition}) cannot be written into the weights, which "
            "are the same at all tokens; use --holdings lasting"
        )
    if not cuts_edges(mask):
        return
    if "one_shot" in holdings:
        raise UserError(
            "a mask on edges cannot be written into the weights: no weight lies behind "
            "an edge alone; use --holdings lasting"
        )


def cuts_edges(mask: FrozenMask) -> bool:
    """Some of the mask's units are edges."""
    return any(site.kind == "edges" for site in mask.sites)


@contextmanager
def held(model: nn.Module, mask: FrozenMask) -> Iterator[tuple[Frozen, ...]]:
    """The mask on and the weights behind ablated units frozen, until the end of `with`.

    Gradients of frozen entries are zeroed as they arrive, so they enter no clipped norm
    and no momentum. That holds only for parameters whose `requires_grad` is on when the
    context is entered. Call `restore_` of each result after every optimiser step: it
    undoes weight decay, bit for bit.
    """
    frozen = tuple(
        Frozen(parameter, where, parameter.detach()[where].clone())
        for parameter, where in frozen_entries(model, mask)
    )
    hooks = [
        entry.parameter.register_hook(_zeroing(entry.where))
        for entry in frozen
        if entry.parameter.requires_grad
    ]
    try:
        with mask.applied(model):
            yield frozen
    finally:
        for hook in hooks:
            hook.remove()


def frozen_entries(
    model: nn.Module, mask: FrozenMask
) -> list[tuple[nn.Parameter, Tensor]]:
    """Weights that read ablated units: parameters with bools of their shape.

    `hidden` sites freeze nothing: the ablation value replaces a module's output, and
    every path from there on sees a constant. Neither do `edges`: weights at both ends
    serve other edges too. Of a module with an adapter the weights do not train, and
    the columns of its factor A, (r, width), are returned instead.
    """
    frozen: dict[str, Tensor] = {}
    for site in mask.sites:
        ablated = ~mask.keep[site.name]
        if site.kind in ("hidden", "edges") or not ablated.any():
            continue
        module = model.get_submodule(site.module)
        key = f"{site.module}.weight"
        if has_adapter(module):
            key = f"{site.module}.lora_A.default.weight"
        where = _outgoing(module, site, ablated)
        frozen[key] = frozen[key] | where if key in frozen else where
    return [(model.get_parameter(key), where) for key, where in frozen.items()]


def _outgoing(module: nn.Module, site: Site, ablated: Tensor) -> Tensor:
    if has_adapter(module):
        a = module.get_parameter("lora_A.default.weight")
        return columns(site, ablated).to(a.device).expand_as(a).clone()
    weight = module.get_parameter("weight")
    if site.kind == "weights":
        return ablated.to(weight.device).view_as(weight)
    reads = columns(site, ablated).to(weight.device)
    # Conv1D stores (in, out), Linear (out, in)
    reads = reads.unsqueeze(1) if isinstance(module, Conv1D) else reads.unsqueeze(0)
    return reads.expand_as(weight).clone()


def _zeroing(where: Tensor):  # type: ignore[no-untyped-def]
    return lambda gradient: gradient.masked_fill(where, 0.0)
