"""Trials of cut edges on a planted circuit beside one that is retained."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitcut.benchmarks.planted.edges import PlantedCircuit, two_behaviours
from circuitcut.benchmarks.planted_circuits import break_one, experiment_on
from circuitcut.experiments.circuits.restore_edges import (
    can_restore_edges,
    with_edges_restored,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.tasks.base import Metric

SETTINGS = MaskSettings(direction="break")
ACCURACY, LOSS = Metric("accuracy", True, "fraction"), Metric("nll", False, "nats")


@pytest.fixture(scope="module")
def circuit() -> PlantedCircuit:
    return two_behaviours(0)


def by_site(circuit: PlantedCircuit, scores: Tensor) -> dict[str, Tensor]:
    sites = sites_of(circuit.model, ["edges"])
    pieces = scores.split([site.n_units for site in sites])
    return {site.name: part for site, part in zip(sites, pieces, strict=True)}


def cut(circuit: PlantedCircuit, scores: Tensor, n_ablated: int) -> FrozenMask:
    sites = sites_of(circuit.model, ["edges"])
    ranking = by_site(circuit, scores)
    return FrozenMask.exactly_k(ranking, sites, zero_values(sites), n_ablated=n_ablated)


def scores_of(circuit: PlantedCircuit, true_rank: float) -> Tensor:
    """A random ranking in [0, 1), the true edges moved by `true_rank`."""
    names = list(graph_of(circuit.model).edges())
    true = torch.tensor([name in circuit.truth for name in names])
    rng = torch.Generator().manual_seed(0)
    return torch.rand(len(names), generator=rng) + true_rank * true


@pytest.mark.parametrize("n_cut", [4, 30])
def test_all_but_one_true_edge_are_restored(circuit: PlantedCircuit, n_cut: int):
    scores = scores_of(circuit, -1.0)
    mask = cut(circuit, scores, n_cut)
    frozen = with_edges_restored(
        experiment_on(circuit), SETTINGS, Frozen(mask, by_site(circuit, scores)), 0.05
    )
    left = frozen.mask
    ranking = frozen.ranking
    assert left.n_ablated == 1
    assert set(left.edges(kept=False)) < circuit.truth
    joined = torch.cat([ranking[site.name] for site in mask.sites])
    whole = torch.cat([left.keep[site.name] for site in mask.sites])
    assert int(joined.argmin()) == int((~whole).nonzero())
    # the others keep their order
    assert torch.equal(joined[whole].argsort(), scores[whole].argsort())


def test_where_the_concept_is_not_broken_more_is_cut_first(circuit: PlantedCircuit):
    scores = scores_of(circuit, -0.2)
    names = list(graph_of(circuit.model).edges())
    places = [names.index(name) for name in circuit.truth]
    below = scores.sort().indices.tolist()
    n_before = min(below.index(place) for place in places)
    assert n_before > 2
    mask = cut(circuit, scores, 2)
    assert not set(mask.edges(kept=False)) & circuit.truth
    frozen = with_edges_restored(
        experiment_on(circuit), SETTINGS, Frozen(mask, by_site(circuit, scores)), 0.05
    )
    left = frozen.mask
    assert left.n_ablated == 1
    assert set(left.edges(kept=False)) < circuit.truth


def test_a_cut_that_cannot_break_the_concept_only_loses_edges(circuit: PlantedCircuit):
    scores = scores_of(circuit, 1.0)  # the true edges come last
    mask = cut(circuit, scores, 3)
    frozen = with_edges_restored(
        experiment_on(circuit), SETTINGS, Frozen(mask, by_site(circuit, scores)), 0.05
    )
    left = frozen.mask
    assert set(left.edges(kept=False)) <= set(mask.edges(kept=False))
    assert left.n_ablated >= 1


def test_few_edges_of_no_asked_number_are_restored(circuit: PlantedCircuit):
    scores = scores_of(circuit, 0.0)
    mask = cut(circuit, scores, 9)
    assert can_restore_edges(mask, SETTINGS, ACCURACY, None)
    assert not can_restore_edges(mask, SETTINGS, ACCURACY, 9)
    assert not can_restore_edges(mask, SETTINGS, LOSS, None)
    isolate = replace(SETTINGS, direction="isolate")
    assert not can_restore_edges(mask, isolate, ACCURACY, None)
    assert not can_restore_edges(cut(circuit, scores, 1), SETTINGS, ACCURACY, None)
    assert not can_restore_edges(cut(circuit, scores, 129), SETTINGS, ACCURACY, None)
    sites = sites_of(circuit.model, ["heads"])
    keep = {site.name: torch.arange(site.n_units) > 3 for site in sites}
    heads = FrozenMask(keep, sites, zero_values(sites))
    assert not can_restore_edges(heads, SETTINGS, ACCURACY, None)


@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
def test_training_breaks_one_of_two_circuits(gate: str):
    circuit = two_behaviours(1)
    found = break_one(circuit, gate, 1, n_steps=80)
    assert found.cut <= circuit.truth
    assert found.accuracy < 0.3
    assert found.retained == 1.0
