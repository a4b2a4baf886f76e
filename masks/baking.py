"""Write a cut into the weights, so that the cut model needs no hooks.

For an ablated input of a projection the outgoing weights become 0, and the product of
these weights and the ablation value is added to the bias. For an ablated hidden unit of
a post-norm encoder, the LayerNorm that writes it gets weight 0 and the ablation value
as bias.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import NoReturn

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.ablation import AblationValues
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

_BIAS_OPTIONS = {"neurons": ("mlp_bias",), "heads": ("attention_bias",)}
"""Configuration entries of transformers that add a bias to these projections."""


def bake_sites_(
    model: nn.Module,
    sites: Sequence[Site],
    keep: Mapping[str, Bool[Tensor, "_unit"]],
    ablated: AblationValues,
    special_ids: Sequence[int],
) -> None:
    """Write the ablation of all sites into the parameters of `model`.

    Sites without ablated units do not change. If a projection has no bias but the
    architecture has an option for one, the option is set; new biases start at 0.

    Raises:
        UserError: When the weights cannot represent the cut; the message names the site
            and the reason, and the model is unchanged.
    """
    cut = [site for site in sites if not bool(keep[site.name].all())]
    if not cut:
        return
    if any(site.kind == "edges" for site in cut):
        raise UserError(
            "a mask on edges cannot be baked: a weight acts on all readers of a "
            "writer, an edge on one of them; apply it with FrozenMask.applied instead"
        )
    _check_cut(ablated, special_ids)
    writers = [_writer(model, site, keep[site.name], ablated) for site in cut]
    with torch.no_grad():
        for write in writers:
            write()


def _check_cut(ablated: AblationValues, special_ids: Sequence[int]) -> None:
    reason = None
    if special_ids:
        reason = f"does not act at the positions of special_ids {tuple(special_ids)}"
    elif ablated.rule is not None:
        reason = f"ablates by a rule ({ablated.kind}, {ablated.rule.condition})"
    elif ablated.kind == "counterfactual":
        reason = "takes its ablation values from paired inputs (counterfactual)"
    elif not ablated.is_pooled:
        reason = "has one ablation value per position"
    if reason is not None:
        raise UserError(
            f"a mask that {reason} cannot be baked, because weights are the same at "
            "all tokens; apply it with FrozenMask.applied instead"
        )


def _writer(
    model: nn.Module, site: Site, kept: Tensor, ablated: AblationValues
) -> Callable[[], None]:
    """A function that bakes one site; all checks are made before it is returned."""
    module = model.get_submodule(site.module)
    value = None if ablated.kind == "zero" else ablated.values[site.name]
    if site.kind == "hidden":
        return _hidden_writer(model, module, site, kept, value)
    if not isinstance(module, nn.Linear | Conv1D):
        _refuse(site, f"its module is a {type(module).__name__}, not a projection")
    _check_untied(model, module.weight, site)
    gains_bias = value is not None and module.bias is None
    prepare = _bias_maker(model, site) if gains_bias else None

    def write() -> None:
        if prepare is not None:
            prepare()
        weight = module.weight
        cut = _cut_weights(module, site, kept.to(weight.device))
        if value is not None:
            lost = torch.where(cut, weight, 0).double()
            ablated_input = value.to(device=weight.device, dtype=torch.float64)
            constant = (
                ablated_input @ lost
                if isinstance(module, Conv1D)
                else lost @ ablated_input
            )
            module.bias.copy_(module.bias.double() + constant)
        weight.masked_fill_(cut, 0.0)

    return write


def _cut_weights(module: "nn.Linear | Conv1D", site: Site, kept: Tensor) -> Tensor:
    """True at the cut entries of the stored weight, in the shape of the weight."""
    weight = module.weight
    if site.kind == "weights":
        return ~kept.view_as(weight)
    inputs = ~kept.repeat_interleave(site.unit_size)
    if isinstance(module, Conv1D):
        return inputs.unsqueeze(1).expand_as(weight)
    return inputs.expand_as(weight)


def _hidden_writer(
    model: nn.Module, module: nn.Module, site: Site, kept: Tensor, value: Tensor | None
) -> Callable[[], None]:
    if not isinstance(module, nn.LayerNorm) or not module.elementwise_affine:
        _refuse(
            site,
            "hidden units can be baked only if a LayerNorm writes them (post-norm "
            f"encoders), but here a {type(module).__name__} writes them",
        )
    if module.bias is None:
        _refuse(site, "its LayerNorm has no bias")
    _check_untied(model, module.weight, site)

    def write() -> None:
        cut = ~kept.to(module.weight.device)
        module.weight.masked_fill_(cut, 0.0)
        constant = (
            torch.zeros_like(module.bias) if value is None else value.to(module.bias)
        )
        module.bias.copy_(torch.where(cut, constant, module.bias))

    return write


def _bias_maker(model: nn.Module, site: Site) -> Callable[[], None]:
    """A function that adds the bias that the architecture allows at `site`.

    The configuration option is tested on a model without storage: all new parameters
    must be biases, and the bias of the site must be one of them.
    """
    base = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    options = _BIAS_OPTIONS.get(site.kind, ())
    option = next(
        (o for o in options if hasattr(getattr(base, "config", None), o)), None
    )
    if base is None or option is None:
        _refuse(site, "its projection has no bias to hold the ablation value")
    config = deepcopy(base.config)
    setattr(config, option, True)
    with torch.device("meta"):
        with_bias = type(base)(config)
    missing = set(dict(with_bias.named_parameters())) - set(
        dict(base.named_parameters())
    )
    prefix = next(name for name, module in model.named_modules() if module is base)
    needed = f"{site.module}.bias".removeprefix(f"{prefix}." if prefix else "")
    if needed not in missing or not all(name.endswith(".bias") for name in missing):
        _refuse(site, f"its architecture has no bias there, even with {option}")

    def make() -> None:
        setattr(base.config, option, True)
        for name in sorted(missing):
            module = base.get_submodule(name.removesuffix(".bias"))
            if module.bias is None:
                shape = with_bias.get_parameter(name).shape
                module.bias = nn.Parameter(module.weight.new_zeros(shape))

    return make


def _check_untied(model: nn.Module, weight: Tensor, site: Site) -> None:
    holders = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is weight
    ]
    if len(holders) > 1:
        _refuse(site, f"its weight is tied ({', '.join(holders)})")


def _refuse(site: Site, reason: str) -> NoReturn:
    raise UserError(
        f"the cut at {site.name} cannot be baked: {reason}; apply the mask with "
        "FrozenMask.applied instead"
    )
