"""Exact activation patching: the model is run with one unit ablated, for every unit.

The score of a unit is the decrease of the concept's margin when this unit alone is
ablated, M(all kept) - M(all kept but the unit), which the gradient methods estimate to
first order. With counterfactual ablation values it is activation patching from the
paired input: J. Vig et al. (2020), "Causal Mediation Analysis for Interpreting Neural
NLP", https://arxiv.org/abs/2004.12265.

A forward pass has one copy of the batch for each of many units of one site, and leaves
out the blocks below the site, whose outputs one pass a batch has recorded.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.edge_patching import EdgePatches, one_by_one
from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.edges.sites import modules_and_edges
from circuitcut.masks.gating import value_of
from circuitcut.models.residual.replayed import record_blocks, replayed
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch

POSITIONS = 2048
"""Positions (tokens, or images) in one pass, copies counted: this bounds memory."""
logger = logging.getLogger(__name__)

Patched = Callable[[range], AbstractContextManager[None]]
"""In the context, copy number i of the batch has unit number i of the range ablated."""


def patching(subject: Subject, n_positions: int = POSITIONS) -> Scores:
    """Exact decrease of the margin, in nats, when a unit alone is ablated.

    Costs one copy of every batch a unit. One forward pass has as many copies as fit
    into `n_positions` positions, and at least one. Edges of encoders, and merged edges
    of models with grouped queries, take a pass of the whole model each.

    Raises:
        UserError: When no batch has a position of the concept.
    """
    n_units = sum(site.n_units for site in subject.sites)
    logger.info(
        "exact patching runs the model with every unit ablated: %s copies of each of "
        "%s batches of %s examples",
        *(f"{n:,}" for n in (n_units, subject.n_batches, subject.size)),
    )
    scores = {
        s.name: torch.zeros(s.n_units, dtype=torch.float64) for s in subject.sites
    }
    total_weight = 0.0
    with evaluating(subject.model), torch.no_grad():
        for batch in subject.concept_batches():
            clean, weight = _clean(subject, batch)
            for site, units, values in _effects(subject, batch, n_positions):
                scores[site.name][units] += clean - values.double().cpu()
            total_weight += weight
    subject.check_weight(total_weight, "position of the concept")
    return {name: total / total_weight for name, total in scores.items()}


def _clean(subject: Subject, batch: Batch) -> tuple[float, float]:
    """Weighted sum of the margins of the uncut model, and the weight."""
    concept = subject.task.outputs(subject.model, batch).concept
    total = (concept.weights * position_margin(concept)).double().sum()
    return total.item(), concept.weights.double().sum().item()


def _effects(
    subject: Subject, batch: Batch, n_positions: int
) -> Iterator[tuple[Site, slice, Float[Tensor, "unit"]]]:
    """Weighted sums of the margins with each unit ablated: site, units, sums."""
    modules, edges = modules_and_edges(subject.sites)
    recorded = record_blocks(
        subject.model, partial(subject.task.outputs, subject.model, batch)
    )
    passes: list[tuple[Site, range, Patched]] = []
    n_at_once = max(1, n_positions // batch["concept"].numel())
    if modules:
        ablated = subject.ablated_at(batch)
        for site in modules:
            patched: Patched = ModulePatches(
                subject.model.get_submodule(site.module),
                site,
                value_of(ablated, site),
                subject.cuttable(batch),
            ).at
            pieces = _pieces(range(site.n_units), n_at_once)
            passes += [(site, piece, patched) for piece in pieces]
    if edges and EdgePatches.can_patch(subject.model, edges):
        patches = EdgePatches.of(subject, batch)
        for site in edges:
            for alike in patches.runs(site):
                passes += [
                    (site, piece, partial(patches.at, site))
                    for piece in _pieces(alike, n_at_once)
                ]
    for site, units, patched in shown(passes, "exact patching", unit="pass"):
        n_copies = len(units)
        copies = {
            name: values.repeat(n_copies, *[1] * (values.dim() - 1))
            for name, values in batch.items()
        }
        n_below = max(0, site.layer) if recorded else 0
        with replayed(subject.model, recorded, n_below, n_copies), patched(units):
            concept = subject.task.outputs(subject.model, copies).concept
        weighted = (concept.weights * position_margin(concept)).double()
        sums = weighted.view(n_copies, -1).sum(1)
        yield site, slice(units.start, units.stop), sums
    if edges and not EdgePatches.can_patch(subject.model, edges):
        yield from one_by_one(subject, batch, edges)


def _pieces(units: range, size: int) -> list[range]:
    return [units[first : first + size] for first in range(0, len(units), size)]


@dataclass
class ModulePatches:
    """Ablates one unit of a site in a module in each copy of a batch."""

    module: nn.Module
    site: Site
    value: Tensor | None
    """The ablation value, broadcastable to the activations of a copy; None is zero."""
    is_cuttable: Tensor
    """(batch, seq) or (batch,); False at positions at which nothing is ablated."""
    units: range = range(0)

    @contextmanager
    def at(self, units: range) -> Iterator[None]:
        """Inside the context copy number i has unit number i of `units` ablated."""
        self.units = units
        if self.site.kind in ("hidden", "weights"):
            handle = self.module.register_forward_hook(self.on_output)
        else:
            handle = self.module.register_forward_pre_hook(self.on_input)
        try:
            yield
        finally:
            handle.remove()

    def on_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.patched(args[0]), *args[1:])

    def on_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.site.kind == "weights":
            return self.without_weights(args[0], output)
        if isinstance(output, tuple):
            return (self.patched(output[0]), *output[1:])
        return self.patched(output)

    def patched(self, x: Tensor) -> Tensor:
        """x with the activation of one unit a copy replaced."""
        moved = self.removed(x)  # (copy, batch, ..., width)
        n_copies, size = len(self.units), self.site.unit_size
        copies = torch.arange(n_copies, device=x.device)
        units = torch.tensor(self.units, device=x.device)
        result = x.clone().unflatten(0, (n_copies, -1))
        by_unit = result.unflatten(-1, (-1, size))
        # by unit: copy, batch, ..., unit, size
        by_unit[copies, ..., units, :] -= moved.unflatten(-1, (-1, size))[
            copies, ..., units, :
        ]
        return result.flatten(0, 1)

    def without_weights(self, x: Tensor, output: Tensor) -> Tensor:
        """y_i - W_ij (x_j - a_j) for the weight W_ij of each copy."""
        weight = self.module.get_parameter("weight").detach()
        n_copies = len(self.units)
        copies = torch.arange(n_copies, device=x.device)
        units = torch.tensor(self.units, device=x.device)
        rows, columns = units // weight.shape[1], units % weight.shape[1]
        # as stored: (out, in), or (in, out) of a Conv1D
        is_transposed = isinstance(self.module, Conv1D)
        outs, ins = (columns, rows) if is_transposed else (rows, columns)
        moved = self.removed(x)[copies, ..., ins]  # (copy, batch, ...)
        values = weight.flatten()[units].view(-1, *[1] * (moved.dim() - 1))
        result = output.clone().unflatten(0, (n_copies, -1))
        result[copies, ..., outs] -= values * moved
        return result.flatten(0, 1)

    def removed(self, x: Tensor) -> Tensor:
        """x - a where something is ablated, else 0: (copy, batch, ..., width)."""
        x = x.unflatten(0, (len(self.units), -1))
        if self.value is not None:
            value = self.value.to(x)
            if value.dim() > 1 and x.dim() > 3:
                value = value[..., : x.shape[-2], :]
            x = x - value
        return x * self.is_cuttable.reshape(1, *x.shape[1:-1], 1)
