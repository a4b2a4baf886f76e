"""FrozenMask: exact counts, ties, overlap, controls, applying."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GateSettings
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

SITES = (
    Site("neurons", "a", 0, 30),
    Site("heads", "b", 0, 4, 8),
    Site("neurons", "c", 1, 16),
)
ZERO = zero_values(SITES)


def _scores(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {site.name: torch.randn(site.n_units, generator=rng) for site in SITES}


@settings(max_examples=25, deadline=None)
@given(n_ablated=st.integers(0, 50), levels=st.integers(1, 60), seed=st.integers(0, 99))
def test_exactly_k_ablates_exactly_the_lowest_k(n_ablated: int, levels: int, seed: int):
    scores = {name: (s * levels).round() / levels for name, s in _scores(seed).items()}
    mask = FrozenMask.exactly_k(scores, SITES, ZERO, n_ablated=n_ablated)
    assert mask.n_ablated == n_ablated
    assert mask.n_units == 50
    joined = torch.cat([scores[site.name] for site in SITES])
    kept = torch.cat([mask.keep[site.name] for site in SITES])
    if 0 < n_ablated < 50:
        assert joined[~kept].max() <= joined[kept].min()


def test_ties_are_ablated_in_the_order_of_the_units():
    scores = {site.name: torch.zeros(site.n_units) for site in SITES}
    scores["a:neurons"][:] = 1.0
    mask = FrozenMask.exactly_k(scores, SITES, ZERO, n_ablated=6)
    assert mask.n_ablated_at == {"a:neurons": 0, "b:heads": 4, "c:neurons": 2}
    assert mask.keep["c:neurons"].tolist() == [False, False] + [True] * 14


@pytest.mark.parametrize(
    "n_ablated", [3.0, 2.5, True, np.float64(3), torch.tensor(3.0)]
)
def test_counts_that_are_no_integers_are_refused(n_ablated: Any):
    told = "n_ablated must be an integer, a number of units, got .* of type "
    with pytest.raises(UserError, match=told + type(n_ablated).__name__):
        FrozenMask.exactly_k(_scores(), SITES, ZERO, n_ablated=n_ablated)
    with pytest.raises(UserError, match=told):
        FrozenMask.random(SITES, ZERO, n_ablated=n_ablated, seed=0)


@pytest.mark.parametrize("n_ablated", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_numpy_and_torch_are_counts(n_ablated: Any):
    mask = FrozenMask.exactly_k(_scores(), SITES, ZERO, n_ablated=n_ablated)
    assert mask.n_ablated == 3
    assert FrozenMask.random(SITES, ZERO, n_ablated=n_ablated, seed=0).n_ablated == 3


def test_gates_and_thresholds_that_are_no_numbers_are_refused():
    masks = MaskSet(SITES, "hard_concrete", GateSettings())
    for threshold in (float("nan"), torch.tensor(float("nan")).item()):
        with pytest.raises(UserError, match="threshold must be a number, got NaN"):
            FrozenMask.from_threshold(masks, ZERO, threshold=threshold)
    with torch.no_grad():
        for parameter in masks.gate.parameters():
            parameter.view(-1)[[31, 49]] = float("nan")
    with pytest.raises(UserError, match="got 2 NaN, the first at b:heads"):
        FrozenMask.from_threshold(masks, ZERO)


@pytest.mark.parametrize("n_ablated", [-1, 51])
def test_impossible_counts_are_refused(n_ablated: int):
    told = rf"between 0 and the number of units \(50\), got {n_ablated}"
    with pytest.raises(UserError, match=told):
        FrozenMask.exactly_k(_scores(), SITES, ZERO, n_ablated=n_ablated)
    with pytest.raises(UserError, match=told):
        FrozenMask.random(SITES, ZERO, n_ablated=n_ablated, seed=0)


def test_scores_that_are_no_numbers_are_refused():
    scores = _scores()
    scores["b:heads"][1] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        FrozenMask.exactly_k(scores, SITES, ZERO, n_ablated=3)


def test_a_threshold_rounds_the_deterministic_gates():
    masks = MaskSet(SITES, "hard_concrete", GateSettings())
    with torch.no_grad():
        masks.gate.log_alpha.copy_(torch.linspace(-4, 4, 50))
    values = torch.cat(list(masks.values().values()))
    for threshold in (0.0, 0.5, 0.99):
        mask = FrozenMask.from_threshold(masks, ZERO, threshold=threshold)
        assert mask.n_ablated == int((values <= threshold).sum())
        assert not torch.cat(list(mask.keep.values()))[0]


def test_overlap_is_the_jaccard_index_of_the_ablated_units():
    def cut(*units: int) -> FrozenMask:
        keep = {site.name: torch.ones(site.n_units).bool() for site in SITES}
        keep["a:neurons"][list(units)] = False
        return FrozenMask(keep, SITES, ZERO)

    assert cut(1, 2, 3).overlap(cut(2, 3, 4, 5)) == pytest.approx(2 / 5)
    assert cut(1, 2).overlap(cut(1, 2)) == 1.0
    assert cut(1, 2).overlap(cut(3)) == 0.0
    assert cut().overlap(cut()) == 1.0
    assert cut().overlap(cut(3)) == 0.0


def test_a_random_control_has_the_same_counts_at_every_site_and_follows_its_seed():
    mask = FrozenMask.exactly_k(_scores(), SITES, ZERO, n_ablated=12)
    controls = [mask.random_like(seed) for seed in range(200)]
    assert all(control.n_ablated_at == mask.n_ablated_at for control in controls)
    assert mask.random_like(3).overlap(mask.random_like(3)) == 1.0
    assert mask.random_like(3).overlap(mask.random_like(4)) < 1.0
    # every unit of a site is drawn equally often, within five standard errors
    n_cut = mask.n_ablated_at["a:neurons"]
    drawn = torch.stack([~c.keep["a:neurons"] for c in controls]).double().mean(0)
    share = n_cut / 30
    assert (drawn - share).abs().max() < 5 * (share * (1 - share) / 200) ** 0.5


def test_a_random_mask_covers_all_sites_in_proportion():
    masks = [FrozenMask.random(SITES, ZERO, n_ablated=10, seed=s) for s in range(300)]
    assert all(mask.n_ablated == 10 for mask in masks)
    counts = torch.tensor([list(m.n_ablated_at.values()) for m in masks]).double()
    expected = torch.tensor([6.0, 0.8, 3.2]).double()
    torch.testing.assert_close(counts.mean(0), expected, atol=0.3, rtol=0)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("special_ids", [(), (3,)])
def test_a_frozen_mask_is_its_gates_at_zero_and_one(
    ablation, special_ids, make_model, make_inputs, logits_of
):
    model, inputs = make_model("gpt2"), make_inputs("gpt2")
    sites = sites_of(model, ["neurons", "heads", "hidden", "weights"])
    values = zero_values(sites)
    if ablation == "mean":
        where = inputs["attention_mask"].bool()
        values = mean_values(model, sites, [(inputs, where)])
    mask = FrozenMask.random(
        sites, values, n_ablated=500, seed=0, special_ids=special_ids
    )
    gates = {name: kept.double() for name, kept in mask.keep.items()}
    with gated(model, sites, gates, values, special_ids=special_ids):
        soft = logits_of(model, inputs)
    before = logits_of(model, inputs)
    with mask.applied(model):
        cut = logits_of(model, inputs)
    torch.testing.assert_close(cut, soft, rtol=0, atol=1e-12)
    assert (cut - before).abs().max() > 1e-3
    assert torch.equal(logits_of(model, inputs), before)


def test_an_ablated_unit_stays_at_its_value_while_everything_trains(make_model):
    model = make_model("gpt2").float().requires_grad_(True)
    sites = sites_of(model, ["neurons", "heads"])
    values = AblationValues("mean", {s.name: torch.randn(s.width) for s in sites})
    mask = FrozenMask.random(sites, values, n_ablated=20, seed=0)
    site = max(sites, key=lambda s: mask.n_ablated_at[s.name])
    seen = []
    ids = torch.randint(2, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        with mask.applied(model):
            module = model.get_submodule(site.module)
            handle = module.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
            model(input_ids=ids, labels=ids).loss.backward()
            handle.remove()
        optimiser.step()
        optimiser.zero_grad()
    cut = (~mask.keep[site.name]).repeat_interleave(site.unit_size)
    expected = values.values[site.name][cut]
    assert cut.any()
    assert all(torch.equal(x[..., cut], expected.expand(4, 6, -1)) for x in seen)


def test_a_counterfactual_mask_takes_the_values_of_each_batch(
    make_model, make_inputs, logits_of
):
    model = make_model("bert")
    sites = sites_of(model, ["hidden"], layers=[1])
    nothing = AblationValues("counterfactual", {})
    keep = {site.name: torch.zeros(site.n_units).bool() for site in sites}
    mask = FrozenMask(keep, sites, nothing)
    other = make_inputs("bert", seed=1)
    with mask.applied(model, ablated=record_values(model, sites, other)):
        cut = logits_of(model, make_inputs("bert"))
    torch.testing.assert_close(cut, logits_of(model, other), rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="record them on the paired inputs"):
        mask.applied(model).__enter__()


def test_malformed_masks_are_refused():
    keep = {site.name: torch.ones(site.n_units).bool() for site in SITES}
    with pytest.raises(UserError, match="name exactly the sites"):
        FrozenMask(keep, SITES[:2], ZERO)
    with pytest.raises(UserError, match=r"30 bools at a:neurons, got .*\(29,\)"):
        FrozenMask(keep | {"a:neurons": torch.ones(29).bool()}, SITES, ZERO)
