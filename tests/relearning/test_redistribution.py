"""Where a concept sits: saliency by formula, planted units, distances."""

import copy

import pytest
import torch
from torch import nn

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.relearning.redistribution import (
    by_layer,
    jaccard,
    redistribution,
    saliency,
    salient_units,
    top_units,
    weight_distance,
)

SITES = (
    Site("neurons", "a", 0, 4),
    Site("neurons", "b", 1, 3),
    Site("heads", "c", 1, 2),
)


def test_saliency_of_the_published_size():
    """Lo et al. (2024): 5,376 units; 1 for the first hundred, .0045 for the last."""
    values = saliency(5376)
    assert (values[:100] == 1.0).all()
    assert values[100] < 1.0
    assert values[-1].item() == pytest.approx(0.0045, abs=5e-5)
    assert (values.diff() <= 0).all()


@pytest.mark.parametrize("n_units", [1, 2, 9, 100, 200, 201, 1000])
def test_saliency_falls_from_one_for_any_size(n_units: int):
    values = saliency(n_units)
    assert len(values) == n_units
    assert values[0] == 1.0
    assert ((values >= 0) & (values <= 1)).all()


def test_planted_units_come_first_and_ties_go_by_index():
    scores = {"a:neurons": torch.tensor([0.0, 9.0, 1.0, 1.0])}
    scores |= {"b:neurons": torch.tensor([1.0, 0.0, 5.0]), "c:heads": torch.zeros(2)}
    chosen = top_units(scores, SITES, 3)
    assert chosen["a:neurons"].tolist() == [False, True, True, False]
    assert chosen["b:neurons"].tolist() == [False, False, True]
    assert not chosen["c:heads"].any()
    with pytest.raises(ValueError, match="between 0 and 9 units, got 10"):
        top_units(scores, SITES, 10)


def test_half_of_the_units_are_salient():
    rng = torch.Generator().manual_seed(0)
    site = Site("hidden", "h", 0, 5376)
    chosen = salient_units({site.name: torch.randn(5376, generator=rng)}, (site,))
    assert abs(int(chosen[site.name].sum()) - 5376 / 2) <= 100


def test_counts_and_shares_by_layer_and_kind():
    chosen = {"a:neurons": torch.tensor([True, True, False, False])}
    chosen |= {"b:neurons": torch.tensor([True, False, False])}
    chosen |= {"c:heads": torch.tensor([False, True])}
    assert by_layer(chosen, SITES) == [
        {"layer": 0, "kind": "neurons", "n": 2, "share": 0.5},
        {"layer": 1, "kind": "heads", "n": 1, "share": 0.25},
        {"layer": 1, "kind": "neurons", "n": 1, "share": 0.25},
    ]


def test_jaccard_by_hand_and_undefined_for_empty_sets():
    first = {"a:neurons": torch.tensor([True, True, False, False])}
    second = {"a:neurons": torch.tensor([False, True, True, False])}
    assert jaccard(first, second) == pytest.approx(1 / 3)
    assert jaccard(first, first) == 1.0
    empty = {"a:neurons": torch.zeros(4, dtype=torch.bool)}
    assert jaccard(empty, empty) is None


def test_a_concept_that_moved_is_found_in_its_new_layer():
    def ranking(found_at: Site) -> dict[str, torch.Tensor]:
        scores = {site.name: torch.zeros(site.n_units) for site in SITES}
        scores[found_at.name] = torch.arange(1.0, found_at.n_units + 1)
        return scores

    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in SITES}
    keep["a:neurons"] = torch.tensor([True, True, False, False])
    mask = FrozenMask(keep, SITES, zero_values(SITES))
    before, after = ranking(SITES[0]), ranking(SITES[1])
    found = redistribution(before, after, mask, fresh=mask)
    assert found["n_compared"] == 2
    assert (found["overlap"], found["overlap_with_mask"]) == (0.0, 0.0)
    assert (found["fresh_overlap"], found["fresh_n"]) == (1.0, 2)
    rows = {(row["layer"], row["kind"]): row for row in found["layers"]}
    assert rows[0, "neurons"]["top_before"] == {"n": 2, "share": 1.0}
    assert rows[1, "neurons"]["top_after"] == {"n": 2, "share": 1.0}
    assert rows[0, "neurons"]["mask"] == {"n": 2, "share": 1.0}
    assert "fresh_mask" in rows[1, "heads"]


def test_the_distance_of_two_models_is_the_norm_of_their_difference():
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    assert weight_distance(model, other) == 0.0
    with torch.no_grad():
        other.weight[0, 0] += 3.0
        other.bias[1] -= 4.0
    assert weight_distance(model, other) == pytest.approx(5.0)


def test_a_bias_that_a_baked_cut_added_counts_from_zero():
    plain, baked = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        baked.weight.copy_(plain.weight)
        baked.bias.copy_(torch.tensor([3.0, 4.0]))
    assert weight_distance(baked, plain) == pytest.approx(5.0)
