"""Value biases in the output bias: the same cut as in a model rewritten that way."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from circuitcut.masks.ablation import mean_values, zero_values
from circuitcut.masks.edges.gating import edge_gated, writers_seen
from circuitcut.masks.edges.sites import by_site
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.storage.errors import UserError
from tests.masks.folded_values import double, rewritten
from tests.models.tiny import exact_norms, tiny_config, tiny_inputs, tiny_model

KINDS = ["gpt2", "gpt_neox", "qwen2", "bert", "distilbert"]
OPTIONS = ["output", "output_with_norm"]


def logits(model: Any) -> Tensor:
    result = model(**tiny_inputs(model))
    found = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found[tiny_inputs(model)["attention_mask"].bool()]


@pytest.mark.parametrize("attention_bias", ["always", "heads"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_that_of_the_model_rewritten_by_hand(
    kind: str, option: Any, attention_bias: Any
):
    model, other = double(kind), rewritten(kind, option)
    with exact_norms(model), exact_norms(other):
        torch.testing.assert_close(logits(model), logits(other), atol=1e-9, rtol=0)
        here = EdgeStack(
            ResidualModel(model, attention_bias=attention_bias, value_bias=option)
        )
        there = EdgeStack(ResidualModel(other, attention_bias=attention_bias))
        plain = EdgeStack(ResidualModel(model, attention_bias=attention_bias))
        n_edges = here.model.graph.n_edges
        rng = torch.Generator().manual_seed(0)
        soft = torch.rand(n_edges, generator=rng).double()
        for keep in (soft, soft < 0.1, soft < 0.9, soft < 2.0, soft > 2.0):
            cuts = []
            for stack, of in ((here, model), (there, other), (plain, model)):
                with edge_gated(stack, keep), torch.no_grad():
                    cuts.append(logits(of))
            torch.testing.assert_close(cuts[0], cuts[1], atol=1e-9, rtol=0)
            if 0.3 < keep.double().mean() < 1:  # some heads are read
                assert (cuts[0] - cuts[2]).abs().max() > 1e-3


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_writes_is_that_of_the_model_rewritten_by_hand(
    kind: str, option: Any
):
    model, other = double(kind), rewritten(kind, option)
    sites, theirs = (
        sites_of(model, ["edges"], value_bias=option),
        sites_of(other, ["edges"]),
    )
    inputs = tiny_inputs(model)
    real = inputs["attention_mask"].bool()
    rows, expected = (
        writers_seen(of, at, inputs)[:, real]
        for of, at in ((model, sites), (other, theirs))
    )
    torch.testing.assert_close(rows, expected, atol=1e-10, rtol=0)
    # a constant in what is written is in its mean: no other cut by means
    means = mean_values(model, sites, [(inputs, real)])
    keep = torch.rand(sites[0].graph.n_edges) < 0.5
    usual = sites_of(model, ["edges"])
    masks = [
        FrozenMask(by_site(sites, keep), sites, means),
        FrozenMask(
            by_site(usual, keep), usual, mean_values(model, usual, [(inputs, real)])
        ),
    ]
    cuts = []
    for mask in masks:
        with mask.applied(model), torch.no_grad():
            cuts.append(logits(model))
    torch.testing.assert_close(cuts[0], cuts[1], atol=1e-9, rtol=0)


def test_a_mask_with_this_option_is_saved_and_loaded(tmp_path: Any):
    model = double("gpt2")
    sites = sites_of(model, ["edges"], value_bias="output_with_norm")
    scores = {site.name: torch.rand(site.n_units) for site in sites}
    mask = FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=40)
    mask.save(tmp_path)
    loaded = FrozenMask.load(tmp_path, model)
    assert loaded.sites == mask.sites
    with mask.applied(model):
        expected = logits(model)
    with loaded.applied(model):
        assert torch.equal(logits(model), expected)
    usual = sites_of(model, ["edges"])
    other = FrozenMask.exactly_k(scores, usual, zero_values(usual), n_ablated=40)
    with pytest.raises(UserError, match="value bias output_with_norm against heads"):
        mask.overlap(other)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2"])
def test_a_bias_before_a_norm_on_what_attention_writes_is_refused(kind: str):
    config = tiny_config(kind)
    config.attention_bias = True
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="a bias before the norm on what attention"):
        sites_of(model, ["edges"])
    assert sites_of(model, ["heads"])


def test_the_option_is_refused_where_a_value_bias_is_no_constant():
    with pytest.raises(UserError, match="normalises what its heads write together"):
        sites_of(tiny_model("gemma2"), ["edges"], value_bias="output")
    with pytest.raises(UserError, match="value_bias is about edges only"):
        sites_of(tiny_model("gpt2"), ["heads"], value_bias="output")
