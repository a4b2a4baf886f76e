"""EAP-IG on tiny models: its pieces against gate gradients, its sum against a run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.attribution.edge_integrated import eap_ig
from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.subject import Subject
from circuitcut.masks.ablation import AblationValues, mean_values, zero_values
from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.masks.edges.writers import record_writers
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.training.objectives import margin
from tests.attribution.toy import ToyTask, ablation
from tests.models.tiny import exact_norms, heads_of, tiny_inputs, tiny_model


def double(kind: str) -> Any:
    return tiny_model(kind, "token_classification").double().requires_grad_(False)


def subject(
    model: Any, sites: tuple[Site, ...], ablated: AblationValues, n_batches: int = 2
) -> Subject:
    return Subject(ToyTask(), model, sites, ablated, "mask", n_batches, 8, 0, ())


@pytest.mark.parametrize("kind", PARTS)
def test_differences_of_the_run_give_the_gates_own_gradient(kind: str):
    model = tiny_model(kind, heads_of(kind)[0]).double().requires_grad_(False)
    inputs = tiny_inputs(model)
    with exact_norms(model):
        stack = EdgeStack(ResidualModel(model))
        graph = stack.model.graph
        ablated = torch.randn(graph.n_writers, 1, 1, 32, dtype=torch.float64)
        written = record_writers(stack.model, inputs)

        def gradient(**how: Tensor) -> Tensor:
            keep = torch.ones(graph.n_edges, dtype=torch.float64).requires_grad_()
            with edge_gated(stack, keep, **how):
                logits = model(**inputs).logits[inputs["attention_mask"].bool()]
                return torch.autograd.grad(logits.square().sum(), keep)[0]

        own = gradient(ablated=ablated)
        given = gradient(differences=written - ablated)
        torch.testing.assert_close(given, own, atol=1e-9, rtol=1e-9)
        doubled = gradient(differences=2 * (written - ablated))
        torch.testing.assert_close(doubled, 2 * own, atol=1e-9, rtol=1e-9)


# zero is no fair end: the gradient of a norm grows without bound towards it; and in
# encoders the input moves the norms' statistics too, which are no edges
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("how", ["mean", "counterfactual"])
def test_scores_of_the_input_sum_to_what_moving_it_does(kind: str, how: str):
    model, task = double(kind), ToyTask()
    with exact_norms(model):
        sites = sites_of(model, ["edges"])
        ablated = ablation(how, task, model, list(sites))
        found = eap_ig(subject(model, sites, ablated, n_batches=1), n_steps=50)
        graph = sites[0].graph
        assert graph is not None
        flat = torch.cat([found[site.name] for site in sites])
        of_input = [name.startswith("input->") for name in graph.edges()]
        lost = flat[torch.tensor(of_input)].sum().item()

        batch = task.batch("mask", 0, size=8, seed=0)
        blocks = ResidualModel(model).blocks
        if how == "counterfactual":
            paired = task.inputs(task.counterfactual(batch))
            value = record_writers(ResidualModel(model), paired)[0]
        else:
            value = ablated.values[sites[-1].name][0]
        whole = _margin(task, model, batch)
        handle = blocks[0].register_forward_pre_hook(
            lambda _, args: (value.expand_as(args[0]), *args[1:])
        )
        moved = _margin(task, model, batch)
        handle.remove()
    assert abs(whole - moved) > 1e-4
    assert lost == pytest.approx(whole - moved, rel=0.01, abs=1e-5)


def _margin(task: ToyTask, model: Any, batch: dict[str, Tensor]) -> float:
    where = batch["concept"]
    logits = model(**task.inputs(batch)).logits[where]
    weights = batch["weights"][where]
    values = margin(logits, task.concept_classes(batch, where), None)
    return ((weights * values).sum() / weights.sum()).item()


def test_the_size_of_a_batch_does_not_matter():
    model = double("gpt2")
    sites = sites_of(model, ["edges"])
    mean = mean_values(model, sites, _real_positions())
    one = eap_ig(Subject(ToyTask(), model, sites, mean, "mask", 1, 8, 0, ()))
    two = eap_ig(Subject(ToyTask(), model, sites, mean, "mask", 2, 4, 0, ()))
    for name, scores in one.items():
        torch.testing.assert_close(scores, two[name], atol=1e-12, rtol=1e-9)


def _real_positions() -> list[tuple[dict[str, Tensor], Tensor]]:
    batch = ToyTask().rows(50, 8)
    return [({"input_ids": batch["input_ids"]}, batch["real"])]


def test_a_mask_on_some_layers_ranks_their_edges():
    model = double("gpt2")
    every = sites_of(model, ["edges"])
    some = sites_of(model, ["edges"], [1])
    whole = eap_ig(subject(model, every, zero_values(every)))
    part = eap_ig(subject(model, some, zero_values(some)))
    assert list(part) == [some[0].name]
    torch.testing.assert_close(part[some[0].name], whole[some[0].name])


@pytest.mark.parametrize("method", ["eap", "eap_ig"])
def test_other_units_are_refused(method: str):
    model = double("gpt2")
    sites = sites_of(model, ["neurons", "edges"])
    with pytest.raises(UserError, match="ranks edges alone"):
        METHODS[method](ToyTask(), model, sites, zero_values(sites))
