"""Planted circuits: the truth by exact ablation, and training that finds it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circuitcut.benchmarks.planted.edges import CIRCUITS, VARIATIONS, PlantedCircuit
from circuitcut.benchmarks.planted.task import PlantedTask
from circuitcut.benchmarks.planted_circuits import (
    SearchResult,
    precision_and_recall,
    search,
)
from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.training.objectives import kl_to_reference

ALL = CIRCUITS | VARIATIONS
LARGE = [name for name in VARIATIONS if "1,519" in name]
LEFT_OUT = {*LARGE[1:], "two MLPs, Llama", "values of values, 8 heads"}
"""For the time they take: `benchmarks/planted_circuits.py` has all."""
SOME = [name for name in VARIATIONS if name not in LEFT_OUT]
Edges = frozenset[str]


def measured(circuit: PlantedCircuit) -> tuple[list[str], Callable[[Edges], float]]:
    """All edges, and KL from the whole model of the model without some of them."""
    model, task = circuit.model, PlantedTask(circuit.draw)
    batch = task.batch("tune", 0, size=48, seed=0)
    inputs = task.inputs(batch)
    said = model(**inputs).logits[:, -1]
    assert (said.argmax(1) == batch["targets"][:, -1]).all()
    names, sites = list(graph_of(model).edges()), sites_of(model, ["edges"])
    values = values_of(circuit, task, batch)

    def loss(cut: Edges) -> float:
        keep = torch.tensor([name not in cut for name in names])
        pieces = keep.split([site.n_units for site in sites])
        named = {site.name: part for site, part in zip(sites, pieces, strict=True)}
        with gated(model, sites, named, values):
            cut_logits = model(**inputs).logits[:, -1]
        return kl_to_reference(cut_logits, said, torch.ones(len(said))).item()

    return names, loss


def values_of(
    circuit: PlantedCircuit, task: PlantedTask, batch: dict[str, Tensor]
) -> AblationValues:
    sites = sites_of(circuit.model, ["edges"])
    if circuit.ablation == "counterfactual":
        paired = task.inputs(task.counterfactual(batch))
        return record_values(circuit.model, sites, paired)
    if circuit.ablation == "mean":
        pairs = [(task.inputs(batch), batch["real"])]
        return mean_values(circuit.model, sites, pairs)
    return zero_values(sites)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "name",
    [*CIRCUITS, *(pytest.param(name, marks=pytest.mark.slow) for name in SOME)],
)
def test_the_true_edges_are_necessary_and_enough_and_no_others_matter(
    name: str, seed: int
):
    circuit = ALL[name](seed)
    names, loss = measured(circuit)
    others = frozenset(names) - circuit.truth
    assert len(others) == len(names) - len(circuit.truth) > 90
    assert loss(others) < 0.05
    step = 1 + len(others) // 400  # of large graphs some
    for edge in [*sorted(circuit.truth), *sorted(others)[::step]]:
        cost = loss(frozenset([edge]))
        if edge in circuit.truth:
            assert cost > 1.0, edge
        else:
            assert cost < 0.005, edge


def test_a_seed_moves_the_circuit_and_a_copy_of_it_is_the_same():
    places = {CIRCUITS["copying head"](seed).truth for seed in range(6)}
    assert len(places) > 2
    first, second = (CIRCUITS["induction head"](3) for _ in range(2))
    assert first.truth == second.truth
    state = second.model.state_dict()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, state[name])


def test_precision_and_recall_by_hand():
    truth = frozenset("abcd")
    assert precision_and_recall(frozenset("abx"), truth) == (2 / 3, 1 / 2)
    assert precision_and_recall(frozenset(), truth) == (0.0, 0.0)


def found(name: str, gate: str, seed: int, n_steps: int) -> tuple[SearchResult, Edges]:
    circuit = ALL[name](seed)
    return search(circuit, gate, seed, n_steps=n_steps), circuit.truth


@pytest.mark.parametrize(
    ("name", "gate"), [("copying head", "hard_concrete"), ("MLP edge", "topk")]
)
def test_the_true_edges_are_found_exactly(name: str, gate: str):
    mask, truth = found(name, gate, 0, 60)
    assert mask.kept == truth


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_the_true_edges_are_found_exactly_on_five_of_five_seeds(name: str, gate: str):
    results = [found(name, gate, seed, 100) for seed in range(5)]
    assert sum(mask.kept == truth for mask, truth in results) == 5


@pytest.mark.slow
def test_training_alone_ranks_the_edges_of_an_encoder_first():
    results = [found("post-norm encoder", "topk", seed, 300) for seed in range(3)]
    assert all(mask.trained == truth for mask, truth in results)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
@pytest.mark.parametrize("name", SOME)
def test_other_families_values_and_sizes_are_found_too(name: str, gate: str):
    results = [found(name, gate, seed, 300) for seed in range(2)]
    assert all(mask.kept == truth for mask, truth in results)
