"""Trials of kept edges on a planted circuit: what is spared, added, asked for."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from circuitcut.benchmarks.planted.edges import CIRCUITS, PlantedCircuit, two_behaviours
from circuitcut.benchmarks.planted_circuits import experiment_on
from circuitcut.experiments.circuits import spare_edges, tries
from circuitcut.experiments.circuits.spare_edges import (
    MOST_EXACT,
    can_remove_spare_edges,
    without_spare_edges,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.block_modules import graph_of

SETTINGS = MaskSettings(direction="isolate", concept_objective="kl", price=0.01)


@pytest.fixture(scope="module")
def circuit() -> PlantedCircuit:
    return CIRCUITS["copying head"](0)


def start(circuit: PlantedCircuit, scores: Tensor, n_kept: int) -> FrozenMask:
    sites = sites_of(circuit.model, ["edges"])
    ranking = by_site(circuit, scores)
    n_ablated = len(scores) - n_kept
    return FrozenMask.exactly_k(
        ranking, sites, zero_values(sites), n_ablated=n_ablated, special_ids=(7,)
    )


def by_site(circuit: PlantedCircuit, scores: Tensor) -> dict[str, Tensor]:
    sites = sites_of(circuit.model, ["edges"])
    pieces = scores.split([site.n_units for site in sites])
    return {site.name: part for site, part in zip(sites, pieces, strict=True)}


def scores_of(circuit: PlantedCircuit, seed: int) -> tuple[Tensor, Tensor]:
    """A random ranking, and which edges are true."""
    names = list(graph_of(circuit.model).edges())
    rng = torch.Generator().manual_seed(seed)
    true = torch.tensor([name in circuit.truth for name in names])
    return torch.rand(len(names), generator=rng), true


@pytest.mark.parametrize("n_kept", [0, 1, 60, 110])
def test_from_any_ranking_the_true_edges_are_left(circuit: PlantedCircuit, n_kept: int):
    scores, true = scores_of(circuit, n_kept)
    mask = start(circuit, scores, n_kept)
    frozen = without_spare_edges(
        experiment_on(circuit), SETTINGS, Frozen(mask, by_site(circuit, scores))
    )
    left = frozen.mask
    ranking = frozen.ranking
    assert set(left.edges(kept=True)) == circuit.truth
    assert left.special_ids == (7,)
    joined = torch.cat([ranking[site.name] for site in mask.sites])
    assert torch.equal(joined.topk(4).indices.sort().values, true.nonzero().flatten())
    # the others keep their order
    assert torch.equal(joined[~true].argsort(), scores[~true].argsort())


def test_an_asked_number_is_met_and_a_mask_that_works_stays(circuit: PlantedCircuit):
    scores, true = scores_of(circuit, 0)
    experiment = experiment_on(circuit)
    working = start(circuit, scores + true, 9)
    frozen = without_spare_edges(
        experiment,
        SETTINGS,
        Frozen(working, by_site(circuit, scores + true)),
        n_ablated=101,
    )
    same = frozen.mask
    assert same.edges(kept=True) == working.edges(kept=True)
    broken = start(circuit, scores - 1.0 * true, 9)
    frozen = without_spare_edges(
        experiment,
        SETTINGS,
        Frozen(broken, by_site(circuit, scores - 1.0 * true)),
        n_ablated=101,
    )
    mended = frozen.mask
    assert len(mended.edges(kept=True)) == 9
    assert circuit.truth < set(mended.edges(kept=True))


def test_only_few_kept_edges_that_isolate_may_be_removed(circuit: PlantedCircuit):
    scores, _ = scores_of(circuit, 0)
    mask = start(circuit, scores, 9)
    assert can_remove_spare_edges(mask, SETTINGS)
    assert not can_remove_spare_edges(mask, MaskSettings(direction="break"))
    sites = sites_of(circuit.model, ["neurons"])
    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in sites}
    neurons = FrozenMask(keep, sites, zero_values(sites))
    assert neurons.n_units > MOST_EXACT
    assert not can_remove_spare_edges(neurons, SETTINGS)


def reversed_mask(
    circuit: PlantedCircuit, n_kept: int
) -> tuple[FrozenMask, dict[str, Tensor]]:
    """A mask that keeps no true edge, and a ranking that has them last."""
    scores, true = scores_of(circuit, 0)
    mask = start(circuit, scores - 1.0 * true, n_kept)
    return mask, by_site(circuit, scores - 1.0 * true)


@pytest.mark.parametrize("n_kept", [2, 20])
def test_where_no_first_edges_work_all_are_searched(
    circuit: PlantedCircuit,
    n_kept: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(spare_edges, "MOST_EXACT", 4)
    mask, ranking = reversed_mask(circuit, n_kept)
    frozen = Frozen(mask, ranking)
    found = without_spare_edges(experiment_on(circuit), SETTINGS, frozen).mask
    assert set(found.edges(kept=True)) == circuit.truth
    assert "searching among all edges" in caplog.text


def test_more_kept_edges_than_are_tried_one_by_one_go_in_pieces(
    circuit: PlantedCircuit,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(spare_edges, "MOST_EXACT", 4)
    scores, true = scores_of(circuit, 0)
    mask = start(circuit, scores + 1.0 * true, 70)
    assert can_remove_spare_edges(mask, SETTINGS)
    assert not can_remove_spare_edges(mask, SETTINGS, n_ablated=40)
    frozen = Frozen(mask, by_site(circuit, scores))
    found = without_spare_edges(experiment_on(circuit), SETTINGS, frozen).mask
    assert set(found.edges(kept=True)) == circuit.truth
    assert "searching" not in caplog.text


def test_a_mask_that_cannot_be_made_to_work_stays_as_it_was(
    circuit: PlantedCircuit,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(spare_edges, "MOST_EXACT", 4)
    mask, ranking = reversed_mask(circuit, 2)
    monkeypatch.setattr(spare_edges, "MOST_TRIES", 12)
    frozen = Frozen(mask, ranking)
    frozen = without_spare_edges(experiment_on(circuit), SETTINGS, frozen)
    found, order = frozen.mask, frozen.ranking
    assert found is mask
    assert order == ranking
    assert "the mask stays as it was trained" in caplog.text


@pytest.fixture
def runs(circuit: PlantedCircuit) -> Iterator[list[int]]:
    """Grows by the number of examples with every run of the model."""
    sizes: list[int] = []
    handle = circuit.model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    yield sizes
    handle.remove()


def test_a_mask_that_works_takes_far_fewer_runs_than_it_has_edges(
    circuit: PlantedCircuit, runs: list[int]
):
    scores, true = scores_of(circuit, 3)
    mask = start(circuit, scores + 1.0 * true, 100)
    frozen = Frozen(mask, by_site(circuit, scores + 1.0 * true))
    found = without_spare_edges(experiment_on(circuit), SETTINGS, frozen).mask
    assert set(found.edges(kept=True)) == circuit.truth
    assert len(runs) < 40


@pytest.mark.parametrize("n_tries", [4, 9, 20])
def test_tries_that_run_out_leave_a_mask_that_works_and_keeps_no_other_edge(
    circuit: PlantedCircuit,
    runs: list[int],
    n_tries: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(spare_edges, "MOST_TRIES", n_tries)
    scores, true = scores_of(circuit, 3)
    mask = start(circuit, scores + 1.0 * true, 100)
    frozen = Frozen(mask, by_site(circuit, scores + 1.0 * true))
    found = without_spare_edges(experiment_on(circuit), SETTINGS, frozen).mask
    kept = set(found.edges(kept=True))
    assert circuit.truth <= kept <= set(mask.edges(kept=True))
    assert len(runs) == 1 + n_tries  # one of the uncut model
    if n_tries == 20:
        assert len(kept) < 50


def test_only_examples_with_the_concept_are_run_and_as_many_as_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    circuit = two_behaviours(0)
    sizes: list[int] = []
    handle = circuit.model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    experiment, results = experiment_on(circuit), []
    for n_fit in (float("inf"), 7.5):
        sizes.clear()
        monkeypatch.setattr(tries, "rows_that_fit", lambda *_, n=n_fit, **__: n)
        scores, true = scores_of(circuit, 3)
        mask = start(circuit, scores + 1.0 * true, 100)
        frozen = Frozen(mask, by_site(circuit, scores + 1.0 * true))
        found = without_spare_edges(experiment, SETTINGS, frozen).mask
        results.append(found.edges(kept=True))
        batch = experiment.task.batch("tune", 0, size=64, seed=0)
        n_concept = int(batch["concept"].any(1).sum())
        assert 0 < n_concept < 64
        assert max(sizes) == min(n_concept, int(min(n_fit, 64)))
        assert sum(sizes) % n_concept == 0
    handle.remove()
    assert results[0] == results[1]
