"""A check of measured means: no single unit's mean may be poison."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.experiments.load import Experiment
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.edges.sites import modules_and_edges
from circuitcut.masks.gating import gated
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Predictions, to_device
from circuitcut.training.objectives import kl_to_reference

COST = 0.2
"""KL to the uncut model, in nats a retained position, that one mean may cost."""
N_LARGEST, N_RANDOM, N_EXAMPLES = 4, 4, 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Poison:
    """The unit whose mean costs most."""

    site: str
    unit: int
    nats: float
    """KL to the uncut model at the retained positions, with this unit alone ablated."""


def warn_of_poison(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    special_ids: Sequence[int],
) -> Poison | None:
    """Replace one unit at a time by its mean; warn where that alone costs `COST` nats.

    A mean over positions that are unlike the others (an attention sink, where a few
    units are a thousand times larger) is no typical value. Tried are the units with the
    largest means, measured against the median of their site, and a few random ones:
    nine forward passes on 16 examples.

    Returns:
        The worst unit, if it is above the limit.
    """
    modules, _ = modules_and_edges(sites)
    modules = tuple(site for site in modules if site.kind != "weights")
    if ablated.kind != "mean" or not modules:
        return None
    uncut = _retained(experiment, (), 0, ablated, special_ids)
    costs = {}
    for site, unit in _candidates(modules, ablated.values):
        cut = _retained(experiment, (site,), unit, ablated, special_ids)
        divergence = kl_to_reference(cut.logits, uncut.logits, cut.weights)
        costs[site.name, unit] = divergence.item()
    (site_name, unit), nats = max(costs.items(), key=lambda item: item[1])
    if not nats > COST:
        return None
    _log.warning(
        "the mean of one unit alone (%s, unit %d) costs %.2f nats of KL on retained "
        "text: it is taken over positions unlike the others, such as attention sinks; "
        "use --ablation zero, or leave these positions out (--mean_over, --positions)",
        *(site_name, unit, nats),
    )
    return Poison(site_name, unit, nats)


def _candidates(
    sites: Sequence[Site], values: Mapping[str, Tensor]
) -> list[tuple[Site, int]]:
    """Units with the largest means, and random ones."""
    places = [(site, unit) for site in sites for unit in range(site.n_units)]
    sizes = torch.cat([_relative_size(site, values[site.name]) for site in sites])
    largest = sizes.topk(min(N_LARGEST, len(places))).indices.tolist()
    rng = torch.Generator().manual_seed(0)
    random = torch.randperm(len(places), generator=rng)[:N_RANDOM].tolist()
    return [places[i] for i in dict.fromkeys(largest + random)]


def _relative_size(site: Site, value: Tensor) -> Tensor:
    """Norm of every unit's mean, divided by the median of the site."""
    by_unit = value.reshape(-1, site.n_units, site.unit_size).float()
    size = by_unit.norm(dim=2).amax(0).cpu()
    return size / size.median().clamp_min(1e-6)


@torch.no_grad()
def _retained(
    experiment: Experiment,
    sites: Sequence[Site],
    unit: int,
    ablated: AblationValues,
    special_ids: Sequence[int],
) -> Predictions:
    """Predictions at the retained positions with one unit ablated."""
    task, model = experiment.task, experiment.loaded.model
    batch = task.batch("mask", 0, size=N_EXAMPLES, seed=0)
    batch = to_device(batch, experiment.accelerator.device)
    keep = {site.name: torch.arange(site.n_units) != unit for site in sites}
    with (
        evaluating(model),
        gated(model, sites, keep, ablated, special_ids=special_ids),
    ):
        return task.outputs(model, batch).retain
