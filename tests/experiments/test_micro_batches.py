"""A batch in parts gives the loss and the gradient of the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.experiments import micro_batches
from circuitcut.experiments.micro_batches import (
    check_memory,
    check_relearning,
    loss_in_micro_batches,
    rows_that_fit,
)
from circuitcut.masks.ablation import record_values
from circuitcut.masks.edges import memory as edge_memory
from circuitcut.masks.edges import read_groups
from circuitcut.masks.edges.memory import token_bytes
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch
from circuitcut.training.objectives import (
    CONCEPT_OBJECTIVES,
    RETAIN_OBJECTIVES,
    ObjectiveSettings,
)
from tests.attribution.toy import SITES, LinearTokens, ToyTask, ablation
from tests.models.tiny import tiny_model


def _setting(kind: str) -> tuple[Any, Any]:
    if kind == "edges":
        model = tiny_model("gpt2", "token_classification").double()
        return model.requires_grad_(False), sites_of(model, ["edges"])
    return LinearTokens(), [SITES["neurons"]]


@pytest.mark.parametrize("kind", ["edges", "neurons"])
@pytest.mark.parametrize("n_rows", [1, 3, 7])
@pytest.mark.parametrize("how", ["mean", "counterfactual"])
def test_parts_add_up_to_the_whole(kind: str, n_rows: int, how: str):
    model, sites = _setting(kind)
    task = ToyTask()
    mean = ablation("mean", task, model, list(sites))
    gates = {
        site.name: torch.rand(site.n_units, dtype=torch.float64).requires_grad_()
        for site in sites
    }
    seen: list[int] = []

    def loss_of_rows(
        keep: Any, part: Batch, shares: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        seen.append(len(part["concept"]))
        values = mean
        if how == "counterfactual":
            paired = task.inputs(task.counterfactual(part))
            values = record_values(model, sites, paired)
        with gated(model, sites, keep, values):
            found = task.outputs(model, part)
        own = ObjectiveSettings()
        concept = CONCEPT_OBJECTIVES["margin"](found.concept, None, own)
        retain = RETAIN_OBJECTIVES["cross_entropy"](found.retain, None, own)
        loss = shares["concept"] * concept + 2 * shares["retain"] * retain
        return loss, {"concept": shares["concept"] * concept.item()}

    batch = task.rows(0, 8)
    whole, logs = loss_in_micro_batches(gates, batch, 8, loss_of_rows)
    expected = torch.autograd.grad(whole, list(gates.values()))
    assert seen == [8]
    loss, numbers = loss_in_micro_batches(gates, batch, n_rows, loss_of_rows)
    found = torch.autograd.grad(loss, list(gates.values()))
    assert max(seen[1:]) == n_rows
    assert sum(seen[1:]) == 8
    torch.testing.assert_close(loss, whole.detach(), check_dtype=False)
    assert numbers == pytest.approx(logs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-5)


def test_rows_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("gpt2", "causal_lm").requires_grad_(False)
    sites = sites_of(model, ["edges"])
    a_token = token_bytes(
        ResidualModel(model), stored=False, n_classes=model.config.vocab_size
    )
    free = int(3.5 * 20 * a_token / micro_batches.BUDGET)
    monkeypatch.setattr("circuitcut.masks.edges.gating.free_bytes", lambda device: free)
    assert rows_that_fit(model, sites, 20) == pytest.approx(3.5, rel=1e-3)
    assert rows_that_fit(model, sites, 20, counterfactual=True) < 3.5
    assert rows_that_fit(model, sites_of(model, ["neurons"]), 20) == float("inf")
    check_memory(model, sites, 20, counterfactual=False)
    with pytest.raises(UserError, match="memory for 70 tokens at once"):
        check_memory(model, sites, 71, counterfactual=False)


def test_relearning_has_the_weights_gradients_and_moments_beside_it(
    monkeypatch: pytest.MonkeyPatch,
):
    model = tiny_model("gpt2", "causal_lm").requires_grad_(False)
    sites, neurons = sites_of(model, ["edges"]), sites_of(model, ["neurons"])
    residual = ResidualModel(model)
    a_token = token_bytes(residual, stored=False, n_classes=model.config.vocab_size)
    weights = sum(w.numel() * w.element_size() for w in model.parameters())

    def with_room_for(n_tokens: float) -> None:
        free = int((3 * weights + n_tokens * a_token) / micro_batches.BUDGET)
        monkeypatch.setattr(
            "circuitcut.masks.edges.gating.free_bytes", lambda device: free
        )

    with_room_for(4.5 * 20)
    check_relearning(model, sites, 20, 4)
    check_relearning(model, neurons, 20, 400)
    with pytest.raises(UserError, match=r"memory for 4 examples .* ask for at most 4"):
        check_relearning(model, sites, 20, 5)
    with_room_for(19)
    with pytest.raises(UserError, match="no memory for one example"):
        check_relearning(model, sites, 20, 1)


def test_memory_is_counted_with_depth_and_storing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_groups, "READERS", 1)  # layers are read one by one
    assert edge_memory.free_bytes(torch.device("cpu")) > 2**20
    gpt2 = ResidualModel(tiny_model("gpt2", "causal_lm"))
    again = token_bytes(gpt2, stored=False)
    stored = token_bytes(gpt2, stored=True)
    graph = gpt2.graph
    reads = 4 * (graph.n_attention_readers + 1) * gpt2.d_model
    assert stored - again == (graph.n_layers - 1) * reads
    assert token_bytes(gpt2, stored=False, n_classes=7) == again + 84


def test_long_and_short_examples_add_up_to_the_padded_batch():
    """The losses of two groups of length, each by its share, and their gradients."""
    lengths = torch.tensor([700, 3, 5, 2])
    mask = torch.arange(700) < lengths[:, None]
    batch = {
        "attention_mask": mask.long(),
        "concept": mask & (torch.arange(700) % 2 == 0),
        "retain": mask & (torch.arange(700) % 2 == 1),
        "weights": torch.rand(4, 700),
    }
    gates = {"a": torch.rand(2, dtype=torch.float64).requires_grad_()}
    seen: list[tuple[int, ...]] = []

    def loss_of(keep: Any, part: Batch, shares: Any) -> tuple[Tensor, dict[str, float]]:
        seen.append(tuple(part["concept"].shape))
        total, weights = keep["a"].sum() * 0, part["weights"].double()
        for key, gate in zip(("concept", "retain"), keep["a"], strict=True):
            of_key = weights * part[key]
            total = total + shares[key] * (gate * of_key.square()).sum() / of_key.sum()
        return total, {}

    loss, _ = loss_in_micro_batches(gates, batch, 4, loss_of)
    assert sorted(seen) == [(1, 700), (3, 5)]
    (found,) = torch.autograd.grad(loss, list(gates.values()))
    whole, _ = loss_of(gates, batch, {"concept": 1.0, "retain": 1.0})
    (expected,) = torch.autograd.grad(whole, list(gates.values()))
    torch.testing.assert_close(loss, whole.detach(), check_dtype=False)
    torch.testing.assert_close(found, expected)
