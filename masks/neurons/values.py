"""Signs and conditional means of neurons, as ablation values that follow a rule."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues, without_head
from circuitcut.masks.neurons.rule import Rule
from circuitcut.models.architectures import gate_path
from circuitcut.models.sites import Site
from circuitcut.models.spared import by_token
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

Inputs = Iterable[tuple[Mapping[str, Tensor], Bool[Tensor, "..."]]]
"""Pairs of the model's keyword arguments and of the positions that count."""


def rule_values(
    rule: Rule,
    sites: Sequence[Site],
    flipped: Sequence[Bool[Tensor, "_unit"]],
    means: Mapping[str, Float[Tensor, "_unit"]] | None = None,
) -> AblationValues:
    """The ablation values of a rule.

    Args:
        sites: Of neurons.
        flipped: One vector a site: True where w_gate . w_in < 0.
        means: Of a rule `mean`, see `conditional_means`.

    Raises:
        UserError: When a rule `mean` lacks its means.
    """
    if rule.kind == "mean" and means is None:
        raise UserError(
            "ablation mean by a rule needs the means where it acts; measure them with "
            "conditional_means"
        )
    by_name = {site.name: f for site, f in zip(sites, flipped, strict=True)}
    return AblationValues(rule.kind, dict(means or {}), rule, by_name)


def check_gates(model: nn.Module, sites: Sequence[Site], rule: Rule) -> None:
    """Refuse a rule that asks for the signs of gates that there are not.

    Raises:
        UserError: When neurons have no gate, or the family is not in the table.
    """
    if rule.gate != "any" and any(gate_path(model, site) is None for site in sites):
        raise UserError(
            f"condition {rule.condition} needs gated neurons, but those of this model "
            "have no gate; use post+ or post-"
        )


def conditional_means(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Inputs,
    rule: Rule,
    flipped: Sequence[Bool[Tensor, "_unit"]],
) -> dict[str, Float[Tensor, "_unit"]]:
    """Mean activation of every neuron over the tokens whose signs the rule asks for.

    That is the mean of the matching quadrants, weighted by their frequencies. A neuron
    that has no such token gets its mean over all tokens. Positions of the rule are not
    looked at.

    Raises:
        UserError: When no position counts, or the gate asked for is not there.
    """
    sums = {site.name: _ConditionalSum(site.width) for site in sites}
    signs = {site.name: f for site, f in zip(sites, flipped, strict=True)}
    check_gates(model, sites, rule)

    def see(site: Site, seen: Seen) -> None:
        matches = torch.ones_like(seen.post, dtype=torch.bool)
        if rule.post != "any":
            matches &= seen.is_positive(signs[site.name]) == (rule.post == "+")
        if rule.gate != "any":
            matches &= seen.gate_is_positive == (rule.gate == "+")
        sums[site.name].add(seen.post, matches)

    watch(model, sites, batches, see)
    return {site.name: sums[site.name].mean(site.name) for site in sites}


class _ConditionalSum:
    """Sums and counts of a site's activations, at all tokens and at matching ones."""

    def __init__(self, width: int):
        self.sums = torch.zeros(2, width, dtype=torch.float64)
        self.counts = torch.zeros(2, width, dtype=torch.float64)
        self.dtype = torch.float32

    def add(
        self,
        post: Float[Tensor, "token width"],
        matches: Bool[Tensor, "token width"],
    ) -> None:
        self.dtype = torch.promote_types(post.dtype, torch.float32)
        self.sums[0] += post.sum(0, dtype=torch.float64).cpu()
        self.counts[0] += len(post)
        self.sums[1] += (post * matches).sum(0, dtype=torch.float64).cpu()
        self.counts[1] += matches.sum(0, dtype=torch.float64).cpu()

    def mean(self, name: str) -> Tensor:
        if not self.counts[0].any():
            raise UserError(
                f"conditional means need at least one marked position at {name}, got "
                "0; check the `where` masks of the batches"
            )
        every, matching = self.sums / self.counts.clamp_min(1.0)
        return torch.where(self.counts[1] > 0, matching, every).to(self.dtype)


@dataclass(frozen=True)
class Seen:
    """The neurons of one site at the tokens of a batch that count."""

    post: Float[Tensor, "token width"]
    """Activations act(g) u as the model computes them; of plain neurons act(u)."""
    gate: Float[Tensor, "token width"] | None
    """g; None: there is no gate."""

    @property
    def gate_is_positive(self) -> Bool[Tensor, "token width"]:
        """Whether the neuron is on; a plain one is where its activation is above 0."""
        return (self.post if self.gate is None else self.gate) > 0

    def is_positive(
        self, flipped: Bool[Tensor, "width"]
    ) -> Bool[Tensor, "token width"]:
        """Whether the activation is above 0 after the refactor."""
        is_flipped = flipped.to(self.post.device)
        return torch.where(is_flipped, self.post < 0, self.post > 0)


def watch(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Inputs,
    see: Callable[[Site, Seen], None],
) -> None:
    """Run the model on every batch, and show the neurons of every site.

    The model runs in evaluation mode and, where it can, without its head.

    Args:
        see: Called once a site and batch, in the order of the layers.
    """
    with torch.no_grad(), evaluating(model):
        for inputs, where in batches:
            with watching(model, sites, where, see):
                without_head(model, sites)(**inputs)


@contextmanager
def watching(
    model: nn.Module,
    sites: Sequence[Site],
    where: Bool[Tensor, "..."],
    see: Callable[[Site, Seen], None],
) -> Iterator[None]:
    """Show the neurons of every site in the forward passes inside the context.

    Args:
        where: (batch, seq) or (batch,), the positions that are shown.
    """
    gates: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for site in sites:
            path = gate_path(model, site)
            if path is not None:
                module = model.get_submodule(path)
                keep = partial(_keep_gate, gates, site.name)
                hooks.callback(module.register_forward_hook(keep).remove)
            show = partial(_show, gates, site, where, see)
            module = model.get_submodule(site.module)
            hooks.callback(module.register_forward_pre_hook(show).remove)
        yield


def _keep_gate(
    gates: dict[str, Tensor], name: str, _: nn.Module, __: Any, output: Tensor
) -> None:
    gates[name] = output.detach()


def _show(
    gates: dict[str, Tensor],
    site: Site,
    where: Tensor,
    see: Callable[[Site, Seen], None],
    _: nn.Module,
    args: tuple[Any, ...],
) -> None:
    gate = gates.pop(site.name, None)
    there = where.to(args[0].device)
    # a module that computes gate and w_in together gives the gate's half first
    of_gate = None if gate is None else gate[there][:, : site.width]
    see(site, Seen(by_token(args[0].detach(), where.shape)[there], of_gate))
