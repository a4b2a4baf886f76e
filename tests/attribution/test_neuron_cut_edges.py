"""Edges of a cut of neurons: exact on a linear transformer, brute force on another."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.attribution.neuron_cut_edges import (
    MEASURES,
    by_reader,
    neuron_cut_edges,
)
from circuitcut.masks.ablation import AblationValues, record_values, zero_values
from circuitcut.masks.edges.sites import by_site, graph_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.neurons.rule import rule_of
from circuitcut.masks.neurons.values import rule_values
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import D_MLP, D_MODEL, exact_norms, tiny_inputs, tiny_model

LARGE = 1e5


def linear_llama() -> Any:
    """A Llama model in double precision that is linear in its embeddings.

    Entry 0 of the residual stream is a large constant: every RMS norm divides by it,
    and the gates read it alone, so that they are constant too. Queries and keys are
    zero: attention is uniform.
    """
    model = tiny_model("llama", "causal_lm").double().requires_grad_(False)
    model.model.embed_tokens.weight[:, 0] = LARGE
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.k_proj.weight.zero_()
        layer.self_attn.v_proj.weight[:, 0] = 0.0
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.gate_proj.weight[:, 1:] = 0.0
        layer.mlp.gate_proj.weight[:, 0] = torch.linspace(-1, 1, D_MLP).double()
        layer.mlp.up_proj.weight[:, 0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(LARGE / D_MODEL**0.5)
            norm.weight[0] = 1 / D_MODEL**0.5  # the gates read 1
    model.model.norm.weight.fill_(LARGE / D_MODEL**0.5)
    model.lm_head.weight = torch.nn.Parameter(
        model.lm_head.weight.clone(), requires_grad=False
    )
    model.lm_head.weight[:, 0] = 0.0
    return model


def linear_measure(logits: Tensor, _: Any, where: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, logits.shape[-1]).to(logits)
    return (logits[where] * weights).sum()


def cut(model: Any, condition: str = "all") -> FrozenMask:
    sites = sites_of(model, ["neurons"])
    keep = {site.name: torch.arange(D_MLP) % 4 != 0 for site in sites}
    values = zero_values(sites)
    if condition != "all":
        flipped = [torch.arange(D_MLP) % 2 == 0 for _ in sites]
        values = rule_values(rule_of("zero", None, condition), sites, flipped)
    return FrozenMask(keep, sites, values)


@torch.no_grad()
def mean_of(model: Any, measure: Any, inputs: Any, where: Tensor) -> float:
    return float(measure(model(**inputs).logits, inputs, where)) / int(where.sum())


def patched(
    model: Any, edges: Any, edge: int, ablated: AblationValues, inputs: Any, where: Any
) -> float:
    """The measure where one reader alone reads what one writer writes if cut."""
    keep = torch.ones(graph_at(edges).n_edges, dtype=torch.bool)
    keep[edge] = False
    with gated(model, edges, by_site(edges, keep), ablated):
        return mean_of(model, linear_measure, inputs, where)


def test_every_edge_of_a_linear_model_is_exact():
    model = linear_llama()
    inputs, edges = tiny_inputs(model), sites_of(model, ["edges"])
    where, mask = inputs["attention_mask"].bool(), cut(model)
    names = list(graph_at(edges).edges())
    with exact_norms(model):
        found = neuron_cut_edges(model, edges, [(inputs, where)], mask, linear_measure)
        clean = mean_of(model, linear_measure, inputs, where)
        with mask.applied(model):
            ablated = record_values(model, edges, inputs)
            whole = mean_of(model, linear_measure, inputs, where) - clean
        for edge in range(0, len(names), 5):
            exact = patched(model, edges, edge, ablated, inputs, where) - clean
            assert float(found[edge]) == pytest.approx(exact, abs=1e-6)
    sums = by_reader(names, found)
    assert abs(whole) > 1e-2
    # the logits read all that was changed; MLP 1 is one of several that notice it
    assert sums["logits"] == pytest.approx(whole, abs=1e-6)
    assert abs(sums["m1"]) > 1e-3
    assert sums["m0"] == 0.0  # nothing before it is ablated
    assert all(not found[n] for n, name in enumerate(names) if name.startswith("a0"))


@pytest.mark.parametrize("measure", list(MEASURES))
def test_the_logits_notice_the_whole_change_to_first_order(measure: str):
    """With a hundredth of the ablation the rest is of second order."""
    model = tiny_model("llama", "causal_lm").double().requires_grad_(False)
    inputs, edges = tiny_inputs(model), sites_of(model, ["edges"])
    where = inputs["attention_mask"].bool()
    where[:, -1] = False
    where[1, 3] = False  # what follows is padding
    sites = sites_of(model, ["neurons"])
    keep = {site.name: torch.arange(D_MLP) % 4 != 0 for site in sites}
    flipped = [torch.zeros(D_MLP, dtype=torch.bool) for _ in sites]
    of_rule = rule_values(rule_of("scale", 0.99, "gate+"), sites, flipped)
    mask = FrozenMask(keep, sites, of_rule)
    with exact_norms(model):
        found = neuron_cut_edges(
            model, edges, [(inputs, where)], mask, MEASURES[measure]
        )
        clean = mean_of(model, MEASURES[measure], inputs, where)
        with mask.applied(model):
            change = mean_of(model, MEASURES[measure], inputs, where) - clean
    names = list(graph_at(edges).edges())
    assert by_reader(names, found)["logits"] == pytest.approx(change, rel=0.02)


def test_the_size_of_a_batch_does_not_matter_and_empty_batches_are_refused():
    model = tiny_model("llama", "causal_lm").double().requires_grad_(False)
    inputs, edges = tiny_inputs(model), sites_of(model, ["edges"])
    where = inputs["attention_mask"].bool()
    mask, measure = cut(model, "gate-/post+"), MEASURES["entropy"]
    rows = [
        ({name: value[i : i + 1] for name, value in inputs.items()}, where[i : i + 1])
        for i in range(2)
    ]
    one = neuron_cut_edges(model, edges, [(inputs, where)], mask, measure)
    two = neuron_cut_edges(model, edges, rows, mask, measure)
    assert float(one.abs().max()) > 1e-5
    torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-4)
    with pytest.raises(UserError, match="at least one position"):
        neuron_cut_edges(model, edges, [], mask, measure)
