"""The first position of a causal model: left out of cuts and of means."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.masks.ablation import mean_values, record_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import sites_of
from circuitcut.models.spared import FIRST_POSITION, spared_positions
from circuitcut.storage.errors import UserError
from tests.models.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [6, 5, 8, 7, 4]])


def test_first_positions_are_those_of_the_text_with_any_padding_and_cache():
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    spared = spared_positions(IDS, left, (FIRST_POSITION, 8))
    expected = [[0, 0, 1, 1, 0], [1, 0, 1, 0, 0]]
    assert spared.int().tolist() == expected
    assert spared_positions(IDS, None, (FIRST_POSITION,)).nonzero().tolist() == [
        [0, 0],
        [1, 0],
    ]
    # the last token alone, four of each row are in the cache
    assert not spared_positions(IDS[:, -1:], left, (FIRST_POSITION,), 4).any()
    assert spared_positions(IDS[:, -1:], None, (9,), 4).tolist() == [[True], [False]]


@pytest.mark.parametrize("units", ["neurons", "heads"])
def test_a_cut_leaves_the_first_position_as_it_is(units: str):
    model = tiny_model("llama", "causal_lm")
    sites = sites_of(model, [units])
    keep = {site.name: torch.zeros(site.n_units) for site in sites}
    plain = model(input_ids=IDS).logits
    with gated(model, sites, keep, zero_values(sites), special_ids=(FIRST_POSITION,)):
        cut = model(input_ids=IDS).logits
    torch.testing.assert_close(cut[:, 0], plain[:, 0])
    assert (cut[:, 1:] - plain[:, 1:]).abs().max() > 1e-3
    with gated(model, sites, keep, zero_values(sites), special_ids=(FIRST_POSITION,)):
        cache = model(input_ids=IDS[:, :3], use_cache=True).past_key_values
        steps = [
            model(input_ids=IDS[:, i : i + 1], past_key_values=cache).logits[:, 0]
            for i in (3, 4)
        ]
    torch.testing.assert_close(torch.stack(steps, 1), cut[:, 3:])


def _by_hand(model: Any, sites: Any, keep: Any, values: Tensor | None) -> Tensor:
    """Edges cut at every position but the first, by values of every token."""
    written = record_values(model, sites, {"input_ids": IDS}).values[sites[-1].name]
    full = torch.zeros_like(written) if values is None else values.expand_as(written)
    full = full.clone()
    full[:, :, 0] = written[:, :, 0]
    from circuitcut.masks.ablation import AblationValues
    from circuitcut.masks.edges.sites import n_seen

    by_site = {site.name: full[: n_seen(site)] for site in sites}
    with gated(model, sites, keep, AblationValues("counterfactual", by_site)):
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bloom"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_edges_spare_the_first_position_where_asked(kind: str, ablation: str):
    model = tiny_model(kind, "causal_lm")
    sites = sites_of(model, ["edges"])
    rng = torch.Generator().manual_seed(1)
    keep = {site.name: torch.rand(site.n_units, generator=rng) for site in sites}
    hard = {name: gate > 0.5 for name, gate in keep.items()}
    where = torch.ones_like(IDS).bool()
    ablated = zero_values(sites)
    flat = None
    if ablation == "mean":
        ablated = mean_values(model, sites, [({"input_ids": IDS}, where)])
        flat = ablated.values[sites[-1].name][:, None, None]
    for gates in (keep, hard):
        with gated(model, sites, gates, ablated, special_ids=(FIRST_POSITION,)):
            cut = model(input_ids=IDS).logits
        torch.testing.assert_close(
            cut, _by_hand(model, sites, gates, flat), atol=1e-5, rtol=1e-4
        )
        plain = model(input_ids=IDS).logits
        torch.testing.assert_close(cut[:, 0], plain[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "opt", "bloom"])
def test_edges_spare_the_first_position_of_texts_padded_on_the_left(kind: str):
    """OPT and Bloom count positions from there, the others from the padding on.

    In single precision: transformers' Bloom gives NaN for such texts in double.
    """
    model = tiny_model(kind, "causal_lm")
    sites = sites_of(model, ["edges"])
    rng = torch.Generator().manual_seed(1)
    keep = {site.name: torch.rand(site.n_units, generator=rng) for site in sites}
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    inputs = {"input_ids": IDS, "attention_mask": mask}
    zeros = zero_values(sites)
    with gated(model, sites, keep, zeros, special_ids=(FIRST_POSITION,)):
        cut = model(**inputs).logits
    plain = model(**inputs).logits
    rows, first = torch.arange(2), mask.argmax(1)
    torch.testing.assert_close(
        cut[rows, first], plain[rows, first], atol=1e-5, rtol=1e-4
    )
    assert (cut - plain)[:, -1].abs().max() > 1e-3


def test_edges_and_heads_together_spare_the_first_position():
    model = tiny_model("llama", "causal_lm")
    sites = sites_of(model, ["heads", "edges"])
    rng = torch.Generator().manual_seed(1)
    keep = {site.name: torch.rand(site.n_units, generator=rng) for site in sites}
    with gated(model, sites, keep, zero_values(sites), special_ids=(FIRST_POSITION,)):
        cut = model(input_ids=IDS).logits
    plain = model(input_ids=IDS).logits
    torch.testing.assert_close(cut[:, 0], plain[:, 0], atol=1e-5, rtol=1e-4)
    assert (cut - plain).abs().max() > 1e-3


@pytest.mark.parametrize("units", ["neurons", "edges"])
def test_the_base_alone_is_cut_in_the_same_way(units: str):
    """Means and rankings under a mask run the model without its head."""
    model = tiny_model("llama", "causal_lm")
    sites = sites_of(model, [units])
    mask = FrozenMask.random(
        sites,
        zero_values(sites),
        n_ablated=9,
        seed=0,
        special_ids=(FIRST_POSITION, 8),
    )
    with mask.applied(model):
        whole = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        alone = model.base_model(input_ids=IDS[:, :3]).last_hidden_state
    torch.testing.assert_close(alone, whole[:, :3])


def test_an_encoder_has_no_first_position_that_edges_could_spare():
    model = tiny_model("bert", "token_classification")
    sites = sites_of(model, ["edges"])
    mask = FrozenMask.random(
        sites, zero_values(sites), n_ablated=3, seed=0, special_ids=(FIRST_POSITION,)
    )
    with pytest.raises(UserError, match="encoder"), mask.applied(model):
        pass
