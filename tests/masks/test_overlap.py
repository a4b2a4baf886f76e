"""Overlap of masks: expectations against enumeration, scipy and draws."""

from itertools import combinations, product

import pytest
import torch
from scipy import stats

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.overlap import (
    Overlap,
    hypergeometric,
    jaccard_by_chance,
    mean_by_chance,
)
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.models.tiny import tiny_model

SITES = (Site("neurons", "a", 0, 6), Site("heads", "b", 1, 4))


def _mask(a: set[int], b: set[int], sites: tuple[Site, ...] = SITES) -> FrozenMask:
    keep = {
        site.name: torch.tensor([i not in ablated for i in range(site.n_units)])
        for site, ablated in zip(sites, (a, b), strict=True)
    }
    return FrozenMask(keep, sites, zero_values(sites))


@pytest.mark.parametrize("sizes", [(10, 4, 7), (3200, 300, 280), (70_651, 9, 35_000)])
def test_shared_units_are_hypergeometric(sizes: tuple[int, int, int]):
    lowest, probabilities = hypergeometric(*sizes)
    x = lowest + torch.arange(len(probabilities))
    expected = torch.from_numpy(stats.hypergeom.pmf(x.numpy(), *sizes))
    torch.testing.assert_close(probabilities, expected, atol=1e-9, rtol=0)


def test_the_expectation_is_the_mean_over_all_pairs_of_sets():
    subsets = [set(c) for c in combinations(range(6), 3)]
    others = [set(c) for c in combinations(range(6), 2)]
    indices = [len(s & t) / len(s | t) for s, t in product(subsets, others)]
    found = jaccard_by_chance([(6, 3, 2)])
    assert found is not None
    assert found.mean == pytest.approx(sum(indices) / len(indices))
    assert found.interval == (min(indices), max(indices))
    values = torch.tensor(indices, dtype=torch.float64)
    assert found.variance == pytest.approx(values.var(correction=0).item())


def test_sets_drawn_site_by_site_and_means_over_pairs_agree_with_draws():
    rng = torch.Generator().manual_seed(0)
    sizes = [(30, 10, 12, 8), (20, 9, 2, 8)]  # of three sets at two sites
    means = []
    for _ in range(4000):
        drawn = [set() for _ in range(3)]
        for site, (n_units, *counts) in enumerate(sizes):
            for chosen, n in zip(drawn, counts, strict=True):
                order = torch.randperm(n_units, generator=rng)[:n]
                chosen |= {(site, unit) for unit in order.tolist()}
        pairs = [len(s & t) / len(s | t) for s, t in combinations(drawn, 2)]
        means.append(sum(pairs) / 3)
    chances = [
        jaccard_by_chance([(n[0], n[1 + i], n[1 + j]) for n in sizes])
        for i, j in combinations(range(3), 2)
    ]
    mean = mean_by_chance([chance for chance in chances if chance])
    assert mean is not None
    drawn_means = torch.tensor(means, dtype=torch.float64)
    assert mean.mean == pytest.approx(drawn_means.mean().item(), abs=0.003)
    assert mean.variance == pytest.approx(drawn_means.var().item(), rel=0.1)
    low, high = mean.interval
    assert 0.93 < ((drawn_means > low) & (drawn_means < high)).double().mean() < 0.97


def test_many_sites_of_many_units_are_summed():
    """The sum of 30 counts has the mean and variance of the counts times 30."""
    found = jaccard_by_chance([(2300, 1150, 1000)] * 30)
    assert found is not None
    mean = 30 * stats.hypergeom.mean(2300, 1150, 1000)
    spread = 30**0.5 * stats.hypergeom.std(2300, 1150, 1000)
    total = 30 * 2150
    ends = [(x := mean + k * spread) / (total - x) for k in (-1.96, 1.96)]
    assert found.interval == pytest.approx(ends, abs=2e-5)
    assert found.mean == pytest.approx(mean / (total - mean), rel=1e-4)


def test_three_masks_worked_by_hand():
    masks = (_mask({0, 1}, {0}), _mask({0, 2}, {0}), _mask({3}, set()))
    overlap = Overlap(masks, kept=False)
    assert overlap.n_chosen() == [3, 3, 1]
    first, *others = overlap.pairs()
    assert (first.n_shared, first.jaccard) == (2, 0.5)
    assert [pair.jaccard for pair in others] == [0.0, 0.0]
    (pair, *_) = overlap.pairs([SITES[1]])
    assert pair.jaccard == 1.0
    # one of four heads each: the same with probability 1/4
    assert pair.by_chance is not None
    assert pair.by_chance.mean == pytest.approx(0.25)
    assert overlap.n_units_by_masks() == [5, 3, 2, 0]
    expected = overlap.expected_by_masks()
    assert sum(expected) == pytest.approx(10)
    assert expected[3] == pytest.approx(10 * 0.3 * 0.3 * 0.1)
    assert overlap.n_masks_of(SITES[0]) == [2, 1, 1, 1, 0, 0]
    assert overlap.unit_names(SITES[1])[2] == "b:heads[2]"
    kept = Overlap(masks, kept=True)
    assert kept.n_chosen() == [7, 7, 9]
    assert kept.pairs()[0].n_shared == 6


def test_two_masks_that_choose_nothing_have_no_overlap():
    pair = Overlap((_mask(set(), set()),) * 2, kept=False).pairs()[0]
    assert pair.jaccard is pair.by_chance is pair.by_chance_per_site is None


def test_edges_are_named():
    sites = sites_of(tiny_model("gpt2", "causal_lm"), ["edges"])
    scores = {site.name: torch.arange(1.0, site.n_units + 1) for site in sites}
    scores[sites[1].name][3] = 0.0
    mask = FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=1)
    overlap = Overlap((mask, mask), kept=False)
    counts = overlap.n_masks_of(sites[1])
    assert counts.index(2) == 3
    assert [overlap.unit_names(sites[1])[3]] == mask.edges(kept=False)


def test_one_mask_and_masks_of_other_sites_are_refused():
    with pytest.raises(UserError, match="at least two masks"):
        Overlap((_mask({0}, set()),), kept=False)
    other = (Site("neurons", "a", 0, 7), SITES[1])
    with pytest.raises(UserError, match="same sites, got 2 sites with 10 units"):
        Overlap((_mask({0}, set()), _mask({0}, set(), other)), kept=False)
