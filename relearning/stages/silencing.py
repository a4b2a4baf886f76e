"""The published way to prune hidden units: gain and bias of a norm are set to zero.

Lo et al. (2024), https://arxiv.org/abs/2401.01814: in an encoder the unit's gain (here
also its bias) in the LayerNorm that writes the level; in a decoder those in the norm
before the block's MLP, so that the MLP alone no longer reads the unit. Nothing is held:
gain and bias train like all weights afterwards. Departure: the embedding level of an
encoder is pruned in its own LayerNorm, not in that of the last block.
"""

from typing import Any

import torch
from torch import nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import architecture_of, block_paths
from circuitcut.models.residual.block_modules import parts_of
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError


def silence_(model: nn.Module, mask: FrozenMask) -> dict[str, int]:
    """Prune the hidden units that `mask` ablates, in the weights of `model`.

    Args:
        model: Its weights change.
        mask: On `hidden` sites, with the ablation value zero. It is written at all
            positions, special tokens included.

    Returns:
        Number of units pruned by site name. In decoders it is 0 at the embedding level,
        behind which there is no such norm.

    Raises:
        UserError: When the architecture has no norm of this kind.
    """
    norms = {site.name: norm_of(model, site) for site in mask.sites}
    silenced = {}
    with torch.no_grad():
        for site in mask.sites:
            found, ablated = norms[site.name], ~mask.keep[site.name]
            silenced[site.name] = 0 if found is None else int(ablated.sum())
            if found is None:
                continue
            norm, zero_gain = found
            where = ablated.to(norm.weight.device)
            norm.weight.masked_fill_(where, zero_gain)
            if getattr(norm, "bias", None) is not None:
                norm.bias.masked_fill_(where, 0.0)
    return silenced


def norm_of(model: nn.Module, site: Site) -> tuple[Any, float] | None:
    """The norm whose gains prune a level, and the weight that is a gain of 0.

    None at the embedding level of a decoder.

    Raises:
        UserError: When the architecture has no norm of this kind.
    """
    if not architecture_of(model).is_decoder:
        norm: Any = model.get_submodule(site.module)
        if getattr(norm, "weight", None) is None or norm.weight.dim() != 1:
            raise UserError(
                f"{site.name} has no gain to set to zero: a {type(norm).__name__} "
                "writes it; use --holdings lasting"
            )
        return norm, 0.0
    if site.layer < 0:
        return None
    parts = parts_of(model)
    block = model.get_submodule(block_paths(model)[site.layer])
    norm = None if parts.norm_mlp is None else block.get_submodule(parts.norm_mlp)
    is_shared = parts.norm_mlp == parts.norm_in  # with attention (GPT-J)
    if norm is None or is_shared or getattr(norm, "weight", None) is None:
        raise UserError(
            f"{type(model).__name__} has no norm before its MLPs alone, whose gains "
            "could be set to zero; use --holdings lasting"
        )
    return norm, -parts.gain_offset
