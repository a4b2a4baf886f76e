"""The gates of one site of neurons whose ablation follows a rule.

y = keep x + (1 - keep) r(x) with r(x) = changed(x) at the tokens where the rule acts
and x elsewhere. Only the columns of neurons that are not kept are computed.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.neurons.rule import Rule
from circuitcut.models.architectures import gate_path
from circuitcut.models.sites import Site
from circuitcut.models.spared import by_token
from circuitcut.storage.errors import UserError


@runtime_checkable
class Batch(Protocol):
    """What a gate asks of the current forward pass."""

    rows: tuple[Tensor, ...] | None
    """Index of the positions at which no gate acts."""
    shape: torch.Size | None
    """(batch, seq) of the inputs, where they are texts."""
    is_paused: bool


# Methods and not closures: the type checks of the tests wrap every function definition.
class RuleGate:
    """Hooks at the input of the MLP's output projection and at the gate's module.

    Args:
        keep: (unit,), bools of a frozen mask or gates in [0, 1].
        ablated: Its rule, the signs of its neurons, and of a rule `mean` its means.

    Raises:
        UserError: When the site is not of neurons, its signs or means are missing or of
            another width, or the rule asks for the sign of a gate that there is not.
    """

    def __init__(
        self,
        model: nn.Module,
        site: Site,
        keep: Tensor,
        ablated: AblationValues,
        batch: Batch,
    ):
        assert ablated.rule is not None
        self.site, self.rule, self.batch = site, ablated.rule, batch
        self.module: Any = model.get_submodule(site.module)
        self.gate_module = _gate_module(model, site, ablated.rule)
        flipped = _of_site(ablated.flipped, site, "signs")
        is_frozen = keep.dtype == torch.bool
        self.cut = (~keep if is_frozen else torch.ones_like(keep).bool()).nonzero()[
            :, 0
        ]
        self.keep = None if is_frozen else keep
        self.sign = torch.where(flipped, -1.0, 1.0)[self.cut.to(flipped.device)]
        self.value: Tensor | None = None
        if self.rule.kind == "mean":
            self.value = _of_site(ablated.values, site, "means")[self.cut.cpu()]
        self.gate: Tensor | None = None
        """Where the cut neurons' gates are positive, (batch, seq, cut)."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Modules that get hooks."""
        return tuple(m for m in (self.module, self.gate_module) if m is not None)

    def install(self) -> Callable[[], None]:
        """Register the hooks; return a function that removes them."""
        self.handles = [self.module.register_forward_pre_hook(self.on_input)]
        if self.gate_module is not None:
            self.handles.append(self.gate_module.register_forward_hook(self.on_gate))
        return self.remove

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def on_gate(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        """Note the signs of the gates; where w_in is joined to them they come first."""
        if not self.batch.is_paused:
            cut = self.cut.to(output.device)
            self.gate = output.detach().index_select(-1, cut) > 0

    def on_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Change the activations that the output projection gets."""
        return (self.apply(args[0]), *args[1:])

    def apply(self, x: Float[Tensor, "*position width"]) -> Tensor:
        """The activations after the ablation."""
        if self.batch.is_paused:
            return x
        self.site.check_width(x)
        cut = self.cut.to(x.device)
        tokens = by_token(x, self.batch.shape)
        part = tokens.index_select(-1, cut)  # (*position, cut)
        sign = self.sign.to(device=x.device, dtype=x.dtype)
        changed = self._changed(part, sign)
        where = self._where(part, sign)
        if where is not None:
            changed = torch.where(where, changed, part)
        if self.keep is not None:
            weight = self.keep.to(device=x.device, dtype=x.dtype)
            changed = torch.lerp(changed, part, weight)
        return tokens.index_copy(-1, cut, changed).view_as(x)

    def _changed(
        self, part: Float[Tensor, "*position cut"], sign: Float[Tensor, "cut"]
    ) -> Tensor:
        """What the rule makes of the activations where it acts."""
        theta = 0.0 if self.rule.theta is None else self.rule.theta
        if self.rule.kind == "cap":
            return sign * (sign * part).clamp_max(theta)
        if self.rule.kind == "relu":
            return sign * (sign * part).relu()
        if self.rule.kind == "scale":
            return theta * part
        if self.rule.kind == "mean":
            assert self.value is not None
            return self.value.to(part).expand_as(part)
        return (theta * sign).expand_as(part)  # fixed, and zero with theta 0

    def _where(
        self, part: Float[Tensor, "*position cut"], sign: Float[Tensor, "cut"]
    ) -> Bool[Tensor, "*position cut"] | None:
        """Where the rule acts; None: everywhere."""
        where = None
        if self.rule.post != "any":
            where = ((sign * part.detach()) > 0) == (self.rule.post == "+")
        if self.rule.gate != "any":
            gate, self.gate = self.gate, None
            if gate is None or gate.shape != part.shape:
                raise UserError(
                    f"the gate of {self.site.name} must be computed before its output "
                    "projection and at the same tokens; apply the mask to a whole model"
                )
            of_gate = gate == (self.rule.gate == "+")
            where = of_gate if where is None else where & of_gate
        if self.batch.rows is not None:
            if where is None:
                where = torch.ones_like(part, dtype=torch.bool)
            where[self.batch.rows] = False
        return where


def _gate_module(model: nn.Module, site: Site, rule: Rule) -> nn.Module | None:
    """The module of the gate, where the rule asks for its sign."""
    if site.kind != "neurons":
        raise UserError(
            f"ablation {rule.kind} by a rule is for neurons, got {site.name}; use zero "
            "or mean values"
        )
    if rule.gate == "any":
        return None
    path = gate_path(model, site)
    if path is None:
        raise UserError(
            f"condition {rule.condition} needs gated neurons of a family in the "
            f"architecture table, but those at {site.name} have no gate; use post+ or "
            "post-"
        )
    return model.get_submodule(path)


def _of_site(values: Any, site: Site, what: str) -> Tensor:
    value = values.get(site.name)
    if value is None or value.shape != (site.width,):
        got = "none" if value is None else str(tuple(value.shape))
        raise UserError(
            f"the rule's {what} at {site.name} must have shape ({site.width},), got "
            f"{got}; make them with rule_values for this model"
        )
    return value
