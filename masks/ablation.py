"""Ablation values: the activations that replace those of ablated units."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuitcut.masks.edges.sites import modules_and_edges, n_seen
from circuitcut.masks.gate_settings import AblationKind
from circuitcut.masks.neurons.rule import Rule, RuleKind
from circuitcut.models.sites import Site
from circuitcut.models.spared import by_token
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating


@dataclass(frozen=True)
class AblationValues:
    """One activation per site, in the shape of the tensor that the site gates.

    `values[site.name]` is (width,), (position, width) or, for counterfactuals,
    (batch, position, width) or (batch, width). For `weights` sites it is the module's
    *input*: an ablated weight is multiplied with the mean input instead of the actual
    one. For `edges` it is the outputs of the writers before the site's readers:
    (writer, d_model), (writer, position, d_model) or (writer, batch, position,
    d_model); see `masks/edges/sites.py`.

    With a `rule` the sites are of neurons: an ablated one changes as the rule says, and
    where it says so. `values` are then the means of a rule `mean`.

    Raises:
        UserError: When the kind is not the rule's, or a rule lacks `flipped`.
    """

    kind: AblationKind | RuleKind
    values: Mapping[str, Tensor]
    rule: Rule | None = None
    flipped: Mapping[str, Bool[Tensor, "_unit"]] = field(default_factory=dict)
    """Of a rule: True, (width,) by site name, where w_gate . w_in < 0, so that the
    neuron's activation counts times -1."""

    def __post_init__(self) -> None:
        expected = self.kind if self.rule is None else self.rule.kind
        if self.kind != expected or bool(self.flipped) != (self.rule is not None):
            raise UserError(
                f"ablation values of kind {self.kind} must have the rule of that kind "
                f"with the signs of its neurons, got {self.rule} and signs at "
                f"{len(self.flipped)} sites; make them with rule_values"
            )
        if self.rule is None and self.kind in ("fixed", "cap", "relu", "scale"):
            raise UserError(
                f"ablation values of kind {self.kind} need a rule; make them with "
                "rule_values"
            )

    @property
    def kind_without_rule(self) -> AblationKind:
        """Zero, mean or counterfactual.

        Raises:
            UserError: When the values follow a rule.
        """
        kind = self.kind
        if self.rule is None and (kind == "counterfactual" or kind == "zero"):
            return kind
        if self.rule is None and kind == "mean":
            return kind
        raise UserError(
            f"ablation {kind} by a rule is for neurons; use zero, mean or "
            "counterfactual values here"
        )

    @property
    def is_pooled(self) -> bool:
        """Whether one value holds for all positions, so that a bias can contain it.

        False for edges and for rules.
        """
        is_one = self.kind != "counterfactual" and self.rule is None
        return is_one and all(value.dim() <= 1 for value in self.values.values())


def zero_values(sites: Sequence[Site]) -> AblationValues:
    """Zeros as wide as each site (one element for `weights` and `edges`)."""
    single = ("weights", "edges")
    widths = {site.name: 1 if site.kind in single else site.width for site in sites}
    return AblationValues(
        "zero", {name: torch.zeros(width) for name, width in widths.items()}
    )


def mean_values(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[tuple[Mapping[str, Tensor], Bool[Tensor, "..."]]],
    per_position: bool = False,
) -> AblationValues:
    """Mean activation of every site over the positions at which `where` is True.

    Sums and counts are accumulated in float64; batches may differ in size and length.
    The model runs in evaluation mode.

    Args:
        batches: Pairs of the model's keyword arguments and `where`. `where` has shape
            (batch, seq) or, for images, (batch,); it is True at real, non-special
            tokens, or at those outside the concept.
        per_position: One mean per position instead of one mean for all positions. A
            position at which `where` is never True gets the mean of all positions.

    Raises:
        UserError: When `where` is True nowhere, or `per_position` is set for
            activations without a sequence axis.
    """
    marked = ((inputs, (where,)) for inputs, where in batches)
    (means,) = means_at(model, sites, marked, per_position=per_position)
    return AblationValues("mean", means)


def means_at(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[tuple[Mapping[str, Tensor], Sequence[Bool[Tensor, "..."]]]],
    *,
    n_sets: int = 1,
    per_position: bool = False,
) -> list[dict[str, Tensor]]:
    """Means over several sets of positions, from one forward pass a batch.

    Args:
        batches: Pairs of the model's keyword arguments and `n_sets` times `where`; see
            `mean_values` for all else.
        n_sets: Sets of positions.

    Returns:
        Of every set the means by site name.
    """
    modules, edges = modules_and_edges(sites)
    n_values = {site.name: 1 for site in modules}
    if edges:  # the last site reads every writer that an earlier site reads
        last = edges[-1]
        n_values[last.name] = n_seen(last)
    sums = [
        {
            name: [_Sum(name, per_position) for _ in range(n)]
            for name, n in n_values.items()
        }
        for _ in range(n_sets)
    ]
    with torch.no_grad(), evaluating(model):
        for inputs, sets in batches:
            recorded = _record(model, modules, inputs)
            activations = {name: [value] for name, value in recorded.items()}
            if edges:
                activations[last.name] = list(_writer_outputs(model, edges, inputs))
            for of_set, where in zip(sums, sets, strict=True):
                for name, totals in of_set.items():
                    for total, activation in zip(
                        totals, activations[name], strict=True
                    ):
                        total.add(activation, where.to(activation.device))
    found = []
    for of_set in sums:
        means = {
            name: torch.stack([total.mean() for total in totals])
            for name, totals in of_set.items()
        }
        values = {site.name: means[site.name].squeeze(0) for site in modules}
        values |= {site.name: means[last.name][: n_seen(site)] for site in edges}
        found.append(values)
    return found


def record_values(
    model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Tensor]
) -> AblationValues:
    """Activations of every site on counterfactual inputs.

    The model runs in its current mode (training or evaluation).
    """
    modules, edges = modules_and_edges(sites)
    with torch.no_grad():
        recorded = _record(model, modules, inputs)
        if edges:
            outputs = _writer_outputs(model, edges, inputs)
            recorded |= {site.name: outputs[: n_seen(site)] for site in edges}
    return AblationValues("counterfactual", recorded)


class _Sum:
    """Running float64 sum and count of one site's activations."""

    def __init__(self, name: str, per_position: bool):
        self.name = name
        self.per_position = per_position
        self.sums = torch.zeros(0, 0, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.dtype = torch.float32

    def add(self, activation: Tensor, where: Tensor) -> None:
        if where.shape != activation.shape[:-1]:
            raise UserError(
                f"argument where must have the shape {tuple(activation.shape[:-1])} of "
                f"the activations at {self.name}, got {tuple(where.shape)}"
            )
        if self.per_position and where.dim() != 2:
            raise UserError(
                "per-position means need a sequence axis, got activations of shape "
                f"{tuple(activation.shape)} at {self.name}; use pooled means"
            )
        self.dtype = torch.promote_types(activation.dtype, torch.float32)
        weights = where.double()
        if self.per_position:
            sums = torch.einsum("bs,bsw->sw", weights, activation.double())
            counts = weights.sum(0)
        else:
            sums = activation[where].double().sum(0, keepdim=True)
            counts = weights.sum().reshape(1)
        self.sums = _padded_sum(self.sums, sums)
        self.counts = _padded_sum(self.counts, counts)

    def mean(self) -> Tensor:
        total = self.counts.sum()
        if total == 0:
            raise UserError(
                f"mean ablation needs at least one marked position at {self.name}, got "
                "0; check the `where` masks of the batches"
            )
        pooled = self.sums.sum(0) / total
        if not self.per_position:
            return pooled.to(self.dtype)
        means = self.sums / self.counts.clamp_min(1.0).unsqueeze(1)
        unseen = self.counts.unsqueeze(1) == 0
        return torch.where(unseen, pooled, means).to(self.dtype)


def _padded_sum(first: Tensor, second: Tensor) -> Tensor:
    if first.numel() == 0:
        return second
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    total = longer.clone()
    total[: len(shorter)] += shorter
    return total


def _record(
    model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Inputs (of `hidden` sites: outputs) of the sites' modules in one forward pass.

    Without sites the model does not run; a head that holds no site does not either.
    """
    recorded: dict[str, Tensor] = {}
    if not sites:
        return recorded
    with ExitStack() as hooks:
        for site in sites:
            module = model.get_submodule(site.module)
            if site.kind == "hidden":
                keep = partial(_keep_output, recorded, site.name)
                handle = module.register_forward_hook(keep)
            else:
                keep = partial(_keep_input, recorded, site.name)
                handle = module.register_forward_pre_hook(keep)
            hooks.callback(handle.remove)
        without_head(model, sites)(**inputs)
    ids = inputs.get("input_ids")
    shape = None if ids is None else ids.shape
    return {name: by_token(value, shape) for name, value in recorded.items()}


def without_head(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """The smallest part of a transformers model that holds the sites: often the base.

    The head of a language model costs a fifth of a small one, and gigabytes of logits.
    """
    base = getattr(model, "base_model", model)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    holds_all = all(site.module.startswith(prefix) for site in sites)
    return base if holds_all and isinstance(base, nn.Module) else model


def _writer_outputs(
    model: nn.Module, edges: Sequence[Site], inputs: Mapping[str, Tensor]
) -> Tensor:
    """Outputs of the writers that the sites' readers read."""
    # imported here because it loads the edge engine
    from circuitcut.masks.edges.gating import writers_seen

    return writers_seen(model, edges, inputs)


def _keep_input(
    recorded: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Any, ...]
) -> None:
    recorded[name] = args[0].detach()


def _keep_output(
    recorded: dict[str, Tensor], name: str, _: nn.Module, __: Any, output: Any
) -> None:
    first = output[0] if isinstance(output, tuple) else output
    recorded[name] = first.detach()
