"""How gates are put into an unmodified model: hooks that live as long as a `with`.

Every gated activation x becomes keep * x + (1 - keep) * a, with a the ablation value;
`weights` sites compute with W * keep, and an ablated weight meets the ablation value of
its input. Nothing is random here: noise is drawn before, because gradient checkpointing
runs the hooks twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from masks.ablation import AblationValues
from masks.mixing import Rows, mix
from models.sites import Site
from storage.errors import UserError


@contextmanager
def gated(
    model: nn.Module,
    sites: Sequence[Site],
    keep: Mapping[str, Float[Tensor, "unit"] | Bool[Tensor, "unit"]],
    ablated: AblationValues,
    *,
    special_ids: Sequence[int] = (),
) -> Iterator[None]:
    """Cut `model` by the gates `keep` inside the context; afterwards it is as before.

    Contexts on activations nest: the inner one gates what the outer one leaves.
    Contexts on the weights of one module do not. With gradient checkpointing the
    backward pass has to run inside the context too, and with `special_ids` one context
    serves one forward.

    Args:
        keep: Gates of every site, (n_units,) by site name: float gates in [0, 1] may
            carry a gradient; bools are a frozen mask and take a cheaper path.
        ablated: What ablated units become; see `AblationValues` for shapes. Values by
            position count from the first token of the sequence, a key-value cache
            included.
        special_ids: Positions whose `input_ids` are among these are never cut.

    Raises:
        UserError: When a site is not in the model or its gates or values do not fit.
    """
    batch = _Batch(special_ids)
    changes = [
        _change(model, site, keep, _value(ablated, site), batch) for site in sites
    ]
    with ExitStack() as stack:
        if special_ids or not ablated.is_pooled:
            handle = model.register_forward_pre_hook(batch.read, with_kwargs=True)
            stack.callback(handle.remove)
        for install in changes:
            if install is not None:
                stack.callback(install())
        yield


class _Batch:
    """What the gates have to know of the inputs of the forward pass at hand."""

    def __init__(self, special_ids: Sequence[int]):
        self.special_ids = torch.tensor(list(special_ids), dtype=torch.int64)
        self.rows: Rows | None = None
        self.n_cached = 0

    def read(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.n_cached = 0 if cache is None else cache.get_seq_length()
        if self.special_ids.numel() == 0:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError(
                "argument special_ids needs a model called with input_ids, got none; "
                "pass input_ids or no special_ids"
            )
        special = torch.isin(ids, self.special_ids.to(ids.device))
        self.rows = special.nonzero(as_tuple=True)


def _value(ablated: AblationValues, site: Site) -> Tensor | None:
    """The ablation value of a site; None stands for zero, which costs less."""
    if ablated.kind == "zero":
        return None
    if site.name not in ablated.values:
        what = (
            "record them on the paired inputs with record_values"
            if ablated.kind == "counterfactual"
            else "compute them for these sites with mean_values"
        )
        raise UserError(
            f"argument ablated has no {ablated.kind} values at {site.name}; {what}"
        )
    return ablated.values[site.name]


def _change(
    model: nn.Module,
    site: Site,
    keep: Mapping[str, Tensor],
    value: Tensor | None,
    batch: _Batch,
) -> Callable[[], Callable[[], None]] | None:
    """A function that puts the gates of one site in place and returns how to undo "
    "it."""
    try:
        module = model.get_submodule(site.module)
    except AttributeError as error:
        raise UserError(
            f"the model has no module {site.module!r}; this mask is for another model"
        ) from error
    if site.name not in keep or keep[site.name].shape != (site.n_units,):
        got = tuple(keep[site.name].shape) if site.name in keep else "none"
        raise UserError(
            f"argument keep must hold {site.n_units} gates at {site.name}, got {got}"
        )
    gates = keep[site.name]
    if gates.dtype == torch.bool and bool(gates.all()):
        return None
    if site.kind == "weights":
        return _weight_change(module, site, gates, value, batch)
    apply = _activation_gate(site, gates, value, batch)
    if site.kind == "hidden":

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (apply(output[0]), *output[1:])
            return apply(output)

        return lambda: module.register_forward_hook(on_output).remove

    def on_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (apply(args[0]), *args[1:])

    return lambda: module.register_forward_pre_hook(on_input).remove


def _activation_gate(
    site: Site, gates: Tensor, value: Tensor | None, batch: _Batch
) -> Callable[[Tensor], Tensor]:
    """x -> keep * x + (1 - keep) * value, for one site."""
    wide = gates.repeat_interleave(site.unit_size) if site.unit_size > 1 else gates
    if wide.dtype == torch.bool:
        wide = wide.float()

    def apply(x: Tensor) -> Tensor:
        if x.shape[-1] != site.width:
            raise UserError(
                f"{site.name} has activations of width {x.shape[-1]}, the mask is for "
                f"{site.width}; this mask is for another model"
            )
        return mix(x, wide.to(x.device), _at(site, value, x, batch), batch.rows)

    return apply


def _at(site: Site, value: Tensor | None, x: Tensor, batch: _Batch) -> Tensor | None:
    """The ablation values of the positions of `x`, broadcastable to it."""
    if value is None:
        return None
    value = value.to(device=x.device, dtype=x.dtype)
    if value.dim() > 1 and x.dim() > 2:
        value = value[..., batch.n_cached : batch.n_cached + x.shape[-2], :]
    fits = value.shape == x.shape[x.dim() - value.dim() :]
    if not fits:
        raise UserError(
            f"the ablation values at {site.name} have the shape {tuple(value.shape)}, "
            f"the activations {tuple(x.shape)}; record them on inputs of this shape"
        )
    return value


def _weight_change(
    module: nn.Module, site: Site, gates: Tensor, value: Tensor | None, batch: _Batch
) -> Callable[[], Callable[[], None]]:
    if not isinstance(module, nn.Linear | Conv1D):
        raise UserError(
            f"{site.module} is a {type(module).__name__}; weights can be cut in Linear "
            "and Conv1D modules only"
        )
    if module.weight.numel() != site.n_units:
        raise UserError(
            f"{site.module} has {module.weight.numel()} weights, the mask is for "
            f"{site.n_units}; this mask is for another model"
        )
    if "forward" in vars(module):
        raise UserError(
            f"the forward of {site.module} is replaced already; masks on the weights "
            "of one module do not nest, so leave the other context first"
        )

    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        keep = gates.to(device=weight.device, dtype=weight.dtype).view_as(weight)
        ablated_input = _at(site, value, x, batch)
        output = _linear(module, x, weight * keep, bias)
        if ablated_input is not None:
            output = output + _linear(module, ablated_input, weight * (1 - keep), None)
        if batch.rows is not None:
            output[batch.rows] = _linear(module, x[batch.rows], weight, bias)
        return output

    def install() -> Callable[[], None]:
        vars(module)["forward"] = forward
        return lambda: vars(module).pop("forward", None)

    return install


def _linear(
    module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    stored = weight.T if isinstance(module, Conv1D) else weight
    return nn.functional.linear(x, stored, bias)
