"""ACDC against a sweep written out by hand, and on a circuit that was planted."""

import math

import pytest
import torch
from torch import Tensor

from circuitcut.attribution.acdc import acdc, removal_order, sweep
from circuitcut.attribution.subject import Subject
from circuitcut.benchmarks.planted.edges import CIRCUITS
from circuitcut.masks.ablation import record_values, zero_values
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.block_modules import graph_of
from tests.attribution.toy import DoubleTask, ablation
from tests.models.tiny import tiny_model

COSTS = torch.tensor([0.5, 0.02, 0.0, 0.2, -0.1], dtype=torch.float64)


THRESHOLDS = (0.0001, 0.0004)  # nats


def additive(keep: Tensor) -> float:
    """Every edge that is ablated costs its own amount."""
    return COSTS[~keep].sum().item()


def test_a_sweep_removes_what_costs_less_than_the_threshold():
    for threshold, kept in (
        (0.1, [0, 3]),
        (math.inf, []),
        (-math.inf, [0, 1, 2, 3, 4]),
    ):
        keep = torch.ones(5, dtype=torch.bool)
        rises = sweep(additive, keep, threshold)
        assert keep.nonzero()[:, 0].tolist() == kept
        torch.testing.assert_close(rises, COSTS)


def test_edges_are_tried_from_the_logits_down_and_each_removal_counts_for_the_next():
    tried: list[list[int]] = []

    def either(keep: Tensor) -> float:
        """Edges 1 and 3 back each other up."""
        tried.append(keep.nonzero()[:, 0].tolist())
        return 0.0 if keep[1] or keep[3] else 1.0

    keep = torch.ones(4, dtype=torch.bool)
    rises = sweep(either, keep, 0.5)
    assert tried == [[0, 1, 2, 3], [0, 1, 2], [0, 1], [0], [1]]
    assert keep.tolist() == [False, True, False, False]
    assert rises.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_ranking_is_by_sweep_and_then_by_cost():
    # .02 and less fall in the first sweep, .2 in the second, .5 in none
    assert removal_order(additive, 5, [0.1, 0.3]).tolist() == [4, 2, 1, 3, 0]
    assert removal_order(additive, 5, [0.1]).tolist() == [4, 2, 1, 3, 0]


def test_the_sweeps_are_those_of_a_search_by_hand():
    """Float gates, logits in double precision and an own KL, one edge at a time."""
    model = tiny_model("gpt2", "token_classification").double().requires_grad_(False)
    model.classifier.weight *= 10  # else no edge matters
    task = DoubleTask(3)
    first, _, logits_site = sites_of(model, ["edges"])
    sites = (first, logits_site)
    ablated = ablation("counterfactual", task, model, list(sites))
    subject = Subject(task, model, sites, ablated, "mask", 2, 2, 0, ())
    sizes = [site.n_units for site in sites]
    batches = [task.batch("mask", step, size=2, seed=0) for step in (0, 1)]

    def logits(batch: dict[str, Tensor], keep: Tensor) -> Tensor:
        inputs = task.inputs(batch)
        values = record_values(model, sites, task.inputs(task.counterfactual(batch)))
        gates = dict(zip((s.name for s in sites), keep.split(sizes), strict=True))
        with torch.no_grad(), gated(model, sites, gates, values):
            return model(**inputs).logits[batch["concept"]].log_softmax(-1)

    def kl(keep: Tensor) -> float:
        total = weight = 0.0
        for batch in batches:
            whole = logits(batch, torch.ones(sum(sizes)))
            weights = batch["weights"][batch["concept"]]
            each = (whole.exp() * (whole - logits(batch, keep))).sum(-1)
            total += (weights * each).sum().item()
            weight += weights.sum().item()
        return total / weight

    keep, value, order = torch.ones(sum(sizes)), 0.0, []
    for threshold in THRESHOLDS:
        fallen = []
        for edge in reversed(range(sum(sizes))):
            if keep[edge]:
                keep[edge] = 0
                without = kl(keep)
                if without - value < threshold:
                    fallen.append((without - value, edge))
                    value = without
                else:
                    keep[edge] = 1
        order += [edge for _, edge in sorted(fallen)]
    scores = acdc(subject, THRESHOLDS)
    ranks = torch.cat([scores[site.name] for site in sites])
    assert 4 < len(order) < sum(sizes) - 4
    assert ranks.argsort()[: len(order)].tolist() == order


@pytest.mark.parametrize("name", ["copying", "induction"])
def test_the_edges_of_a_planted_circuit_fall_last(name: str):
    circuit = next(CIRCUITS[key] for key in CIRCUITS if key.startswith(name))(0)
    model, sites = circuit.model, sites_of(circuit.model, ["edges"])
    subject = Subject(
        circuit.task(circuit.draw), model, sites, zero_values(sites),
        "mask", 1, 32, 0, (),
    )  # fmt: skip
    scores = acdc(subject)
    ranks = torch.cat([scores[site.name] for site in sites])
    names = list(graph_of(model).edges())
    last = ranks.argsort(descending=True)[: len(circuit.truth)]
    assert {names[edge] for edge in last.tolist()} == circuit.truth
