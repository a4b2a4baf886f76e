"""Ablation values: what an ablated unit's activation becomes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuitcut.masks.edges.sites import modules_and_edges, n_seen
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

AblationKind = Literal["zero", "mean", "counterfactual"]


@dataclass(frozen=True)
class AblationValues:
    """One activation per site, in the shape of what the site gates.

    `values[site.name]` is (width,), (position, width) or, for counterfactuals,
    (batch, position, width) or (batch, width). For `weights` sites it is the module's
    *input*: an ablated weight then meets the mean input instead of the live one. For
    `edges` it is what the writers write that the site's readers see: (writer, d_model),
    (writer, position, d_model) or (writer, batch, position, d_model), see
    `masks/edges/sites.py`.
    """

    kind: AblationKind
    values: Mapping[str, Tensor]

    @property
    def is_pooled(self) -> bool:
        """Whether one value serves all positions and can live in a bias: no edges."""
        return self.kind != "counterfactual" and all(
            value.dim() <= 1 for value in self.values.values()
        )


def zero_values(sites: Sequence[Site]) -> AblationValues:
    """Zeros of every site's width (of one element for `weights` and `edges`)."""
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
    """Mean activation of every site over the positions that `where` marks.

    Sums and counts are kept in float64, so batches may be ragged. The model runs in
    evaluation mode.

    Args:
        batches: Pairs of the model's keyword arguments and `where`, (batch, seq) or,
            for images, (batch,): real, non-special tokens, or the non-concept ones.
        per_position: One mean per sequence index instead of one for all; an index that
            `where` never marks gets the pooled mean.

    Raises:
        UserError: When `where` marks nothing, or `per_position` is asked without
            positions.
    """
    modules, edges = modules_and_edges(sites)
    sums = {site.name: [_Sum(site.name, per_position)] for site in modules}
    if edges:  # the last site sees the writers that any of them sees
        last = edges[-1]
        sums[last.name] = [_Sum(last.name, per_position) for _ in range(n_seen(last))]
    with torch.no_grad(), evaluating(model):
        for inputs, where in batches:
            parts = {name: [x] for name, x in _record(model, modules, inputs).items()}
            if edges:
                parts[last.name] = list(_written(model, edges, inputs))
            for name, totals in sums.items():
                for total, part in zip(totals, parts[name], strict=True):
                    total.add(part, where.to(part.device))
    means = {
        name: torch.stack([total.mean() for total in totals])
        for name, totals in sums.items()
    }
    values = {site.name: means[site.name].squeeze(0) for site in modules}
    values |= {site.name: means[last.name][: n_seen(site)] for site in edges}
    return AblationValues("mean", values)


def record_values(
    model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Tensor]
) -> AblationValues:
    """Activations of every site on other inputs, for counterfactual ablation.

    The caller's train or eval mode is kept.
    """
    modules, edges = modules_and_edges(sites)
    with torch.no_grad():
        recorded = _record(model, modules, inputs)
        if edges:
            written = _written(model, edges, inputs)
            recorded |= {site.name: written[: n_seen(site)] for site in edges}
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
        kept = where.double()
        if self.per_position:
            sums = torch.einsum("bs,bsw->sw", kept, activation.double())
            counts = kept.sum(0)
        else:
            sums = activation[where].double().sum(0, keepdim=True)
            counts = kept.sum().reshape(1)
        self.sums = _padded_sum(self.sums, sums)
        self.counts = _padded_sum(self.counts, counts)

    def mean(self) -> Tensor:
        total = self.counts.sum()
        if total == 0:
            raise UserError(
                f"mean ablation needs at least one marked position at {self.name}, got "
                "0; check the data of the `where` masks"
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
    """What the sites' own modules get or give; nothing is run where there are none."""
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
        model(**inputs)
    return recorded


def _written(
    model: nn.Module, edges: Sequence[Site], inputs: Mapping[str, Tensor]
) -> Tensor:
    """What the writers write that the sites' readers see."""
    from circuitcut.masks.edges.gating import writers_seen  # loads the engine

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
