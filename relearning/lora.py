"""Low-rank adapters for relearning: the weights stay, and products of thin ones train.

E. J. Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685, through the package peft. Every linear module of a
block computes W x + (alpha / r) B A x, with alpha = 2 r; W does not change. A has shape
(r, d_in) and is uniform at the start, B has shape (d_out, r) and starts at 0.
Departure: the columns of A that read an ablated unit are 0 and stay 0
(`holding.frozen_entries`), so that the weights behind it do not change.
"""

import re
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.relearning.lora_rank import check_peft
from circuitcut.storage.errors import UserError

_IN_A_BLOCK = re.compile(r"\.\d+\.")


def adapted_modules(model: nn.Module, mask: FrozenMask) -> list[str]:
    """Paths of the modules that get an adapter: all linear ones of the blocks.

    Modules whose own weights are units of the mask get none: a product of thin matrices
    changes all weights of a module, and so the ablated ones.

    Raises:
        UserError: When the mask is on edges, or no module is left.
    """
    kinds = {site.kind for site in mask.sites}
    if "edges" in kinds:
        raise UserError(
            "trained lora cannot be used with a mask on edges, whose forward pass "
            "reads the weights without adapters; use all, mlp or attention"
        )
    of_weights = {site.module for site in mask.sites if site.kind == "weights"}
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and _IN_A_BLOCK.search(f"{path}.")
        and path not in of_weights
    ]
    if not paths:
        raise UserError(
            f"trained lora finds no linear module in the blocks of "
            f"{type(model).__name__} beside those whose weights the mask cuts; use all "
            "or head"
        )
    return paths


def add_adapters_(
    model: nn.Module,
    mask: FrozenMask,
    *,
    rank: int,
    seed: int,
    held: FrozenMask | None = None,
) -> None:
    """Add adapters to the linear modules of the blocks; the outputs do not change.

    The adapters are float32 on the device of their module, and their parameters alone
    have `lora_A` or `lora_B` in their names. Call it before `held_model`.

    Args:
        mask: Decides, for all conditions alike, which modules get adapters.
        rank: r, the number of rows of A.
        seed: Seed of the initial values of A.
        held: The mask that will be held; None holds nothing.

    Raises:
        UserError: See `adapted_modules` and `check_peft`.
    """
    check_peft()
    # imported here because it takes seconds, and is optional
    from peft import LoraConfig, inject_adapter_in_model

    paths = adapted_modules(model, mask)
    transposed = isinstance(model.get_submodule(paths[0]), Conv1D)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=paths,
        fan_in_fan_out=transposed,
    )
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # a model with Linear and Conv1D modules: peft corrects fan_in_fan_out itself
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    for parameter, required in flags:  # peft switches them off
        parameter.requires_grad_(required)
    rng = torch.Generator().manual_seed(seed)
    for path in paths:
        adapter: Any = model.get_submodule(path)
        a = factor(adapter, "A")
        bound = a.shape[1] ** -0.5  # that of a linear module
        a.data = (2 * torch.rand(a.shape, generator=rng) - 1).mul_(bound).to(a.device)
        b = factor(adapter, "B")
        b.data = b.data.float()
    for site in held.sites if held is not None else ():
        module = model.get_submodule(site.module)
        if held is not None and has_adapter(module) and site.kind != "hidden":
            factor(module, "A").data[:, columns(site, ~held.keep[site.name])] = 0.0


def has_adapter(module: nn.Module) -> bool:
    """Whether a module is a linear one with an adapter around it."""
    return "lora_A" in dict(module.named_children())


def factor(adapter: Any, which: str) -> nn.Parameter:
    """The parameter A, (r, d_in), or B, (d_out, r), of a module with an adapter."""
    return getattr(adapter, f"lora_{which}")["default"].weight


def columns(site: Site, units: Tensor) -> Tensor:
    """Bools over the inputs of a site's module, (width,), from bools over its units."""
    return units.repeat_interleave(site.unit_size)


def adapter_change(adapter: Any) -> Float[Tensor, "_a _b"]:
    """(alpha / r) B A, the change of the weights, float64, in their shape."""
    product = factor(adapter, "B").detach().double() @ factor(adapter, "A").double()
    change = product.detach() * adapter.scaling["default"]
    return change.T if isinstance(adapter.base_layer, Conv1D) else change
