"""Shares of circuits, counted by our units or by the edges of MIB."""

from dataclasses import replace

import pytest
import torch

from circuitcut.benchmarks.planted_circuits import ALL, experiment_on
from circuitcut.experiments import gate_training
from circuitcut.experiments.circuits.faithfulness import measured, n_within
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.edges.sites import by_site
from circuitcut.masks.formats.edge_matrices import (
    copies_per_edge,
    per_query_head,
    regrouped,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.tasks.evaluation import evaluate
from tests.models.tiny import tiny_model


def test_the_top_of_a_ranking_has_the_share_of_edges_that_mib_counts():
    sites = sites_of(tiny_model("llama"), ["edges"])
    graph = sites[0].graph
    assert graph is not None
    wide = per_query_head(graph)
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 40, (graph.n_edges,), generator=rng).float()  # with ties
    ranking, counts = by_site(sites, scores), copies_per_edge(graph)
    order = scores.sort(stable=True).indices.flip(0)
    for fraction in (0.001, 0.05, 0.2, 0.5, 0.999, 1.0):
        n_kept = n_within(ranking, sites, counts, fraction)
        allowed = int(fraction * wide.n_edges)
        sizes = []
        for n in (n_kept, n_kept + 1):
            kept = torch.zeros(graph.n_edges, dtype=torch.bool)
            kept[order[:n]] = True
            sizes.append(int(regrouped(graph, kept, wide).sum()))
        assert sizes[0] <= allowed
        assert sizes[1] > allowed or n_kept == graph.n_edges
        ones = torch.ones_like(counts)
        assert n_within(ranking, sites, ones, fraction) == int(fraction * len(ones))


def test_counterfactuals_and_the_uncut_model_run_once_a_batch_for_all_circuits(
    monkeypatch: pytest.MonkeyPatch,
):
    circuit = ALL["MLP edge, Llama"](0)
    circuit = replace(circuit, ablation="counterfactual")
    experiment = experiment_on(circuit)
    experiment.task.eval_batch = 24  # 64 examples in three batches
    sites = tuple(sites_of(circuit.model, ["edges"]))
    n_units = sum(site.n_units for site in sites)
    empty = FrozenMask.exactly_k(
        {site.name: torch.zeros(site.n_units) for site in sites},
        sites,
        AblationValues("counterfactual", {}),
        n_ablated=n_units,
    )
    ranked = {
        ("eap", number, "signed"): by_site(sites, torch.rand(n_units))
        for number in range(2)
    }
    recorded = []
    record = gate_training.record_values
    monkeypatch.setattr(
        gate_training,
        "record_values",
        lambda *given: recorded.append(1) or record(*given),
    )
    uncut = []
    outputs = experiment.task.outputs
    monkeypatch.setattr(
        experiment.task,
        "outputs",
        lambda model, batch: uncut.append(model) or outputs(model, batch),
    )
    found = measured(
        experiment, empty, ranked, fractions=[0.5, 0.9, 1.0], split="heldout"
    )
    assert len(recorded) == 3
    assert sum(model is circuit.model for model in uncut) == 3
    whole = [entry for entry in found["curve"] if entry["fraction"] == 1.0]
    assert [entry["faithfulness"] for entry in whole] == pytest.approx([1.0, 1.0])
    alone = evaluate(
        experiment.task,
        circuit.model,
        "heldout",
        cut=gate_training.cut_with(experiment, empty),
        only_concept=True,
    ).scores
    assert found["scores"]["nothing kept"]["accuracy"] == alone["accuracy"]
    area = found["areas"][0]["score_area"]
    first = [entry["scores"]["accuracy"] for entry in found["curve"][:3]]
    by_hand = 0.4 * (first[0] + first[1]) / 2 + 0.1 * (first[1] + first[2]) / 2
    assert area == pytest.approx(by_hand)


def test_complements_may_be_left_out():
    circuit = ALL["copying head"](0)
    sites = tuple(sites_of(circuit.model, ["edges"]))
    n_units = sum(site.n_units for site in sites)
    ranking = by_site(sites, torch.rand(n_units))
    empty = FrozenMask.exactly_k(ranking, sites, zero_values(sites), n_ablated=n_units)
    ranked = {("eap", 0, "signed"): ranking, ("topk", 0, "signed"): ranking}
    for complements, with_any in (("learned", {"topk"}), ("none", set())):
        found = measured(
            experiment_on(circuit),
            empty,
            ranked,
            fractions=[0.5, 1.0],
            split="heldout",
            complements=complements,
        )
        measured_too = {e["method"] for e in found["curve"] if e["without"]}
        assert measured_too == with_any
