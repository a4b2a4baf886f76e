"""Regions of chance: the beta distribution against samples, mismatched pairs."""

import math

import pytest
import torch
from scipy.stats import beta, binom

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.mlp_weights import MlpWeights, centred
from circuitcut.weight_classes.significance import (
    beta_region,
    beta_regions,
    mismatched_cosines,
    mismatched_regions,
    outside,
)


def random_weights(n: int, d: int, seed: int = 0) -> MlpWeights:
    rng = torch.Generator().manual_seed(seed)
    return MlpWeights(*torch.randn(3, n, d, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_random_vectors_leave_the_beta_region_as_often_as_alpha_says(alpha: float):
    n, d = 20_000, 24
    found = outside(
        Cosines.of(random_weights(n, d)), beta_regions(d, alpha, gated=True)
    )
    low, high = binom.ppf([0.0005, 0.9995], n, alpha)
    assert set(found) == {"gate_in", "gate_out", "in_out"}
    assert all(low <= number <= high for number in found.values()), found


def test_centred_random_vectors_have_one_dimension_less():
    n, d = 20_000, 6
    weights = random_weights(n, d)
    assert weights.gate is not None
    parts = (centred(v) for v in (weights.gate, weights.w_in, weights.w_out))
    found = Cosines.of(MlpWeights(*parts))
    low, high = binom.ppf([0.0005, 0.9995], n, 0.05)
    right = outside(found, beta_regions(d - 1, 0.05, gated=True))["in_out"]
    wrong = outside(found, beta_regions(d, 0.05, gated=True))["in_out"]
    assert low <= right <= high
    assert wrong > high


def test_the_region_in_three_dimensions_is_that_of_a_uniform_cosine():
    """On a sphere in three dimensions the cosine is uniform: Archimedes."""
    assert beta_region(3, 0.05) == pytest.approx((-0.95, 0.95))
    assert beta_region(3, 0.5) == pytest.approx((-0.5, 0.5))
    assert beta_region(576)[1] == pytest.approx(1.96 / math.sqrt(576), rel=0.01)
    high = 2 * beta.ppf(1 - 0.025 / 46_080, 287.5, 287.5) - 1
    assert beta_region(576, 0.05 / 46_080)[1] == pytest.approx(high)


def test_mismatched_pairs_join_different_neurons_alone():
    # each neuron is its own direction: cosines are 1 with itself and 0 with others
    eye = torch.eye(6, dtype=torch.float64)
    pairs = mismatched_cosines(MlpWeights(eye, eye, eye), seed=0, n_pairs=18)
    assert {name: value.abs().max().item() for name, value in pairs.items()} == {
        "gate_in": 0.0,
        "gate_out": 0.0,
        "in_out": 0.0,
    }
    assert len(pairs["in_out"]) == 18
    every = mismatched_cosines(MlpWeights(None, eye, eye), seed=0, n_pairs=999)
    assert len(every["in_out"]) == 30  # n (n - 1)
    assert set(every) == {"in_out"}


def test_all_mismatched_pairs_have_the_quantiles_of_brute_force():
    weights = random_weights(9, 5)
    pairs = mismatched_cosines(weights, seed=3, n_pairs=72)
    read = weights.refactored()  # some of the signs change
    unit = torch.nn.functional.normalize
    off = ~torch.eye(9, dtype=torch.bool)
    in_out = (unit(read.w_in) @ unit(read.w_out).T)[off]
    assert torch.allclose(pairs["in_out"].sort().values, in_out.sort().values)
    assert read.gate is not None
    gate_in = (unit(read.gate) @ unit(read.w_in).T)[off].abs()
    regions = mismatched_regions(pairs, 0.1)
    ends = torch.quantile(in_out, torch.tensor([0.05, 0.95], dtype=torch.float64))
    assert regions["in_out"] == pytest.approx(ends.tolist())
    assert regions["gate_in"] == pytest.approx((0.0, float(gate_in.quantile(0.9))))


def test_the_mismatched_region_of_random_weights_is_about_the_beta_region():
    pairs = mismatched_cosines(random_weights(4000, 32), seed=0, n_pairs=20_000)
    region = mismatched_regions(pairs, 0.05)["gate_out"]
    assert region == pytest.approx(beta_region(32, 0.05), abs=0.01)


def test_planted_alignment_is_outside_of_both_regions():
    weights = random_weights(1000, 64)
    w_out = weights.w_out.clone()
    w_out[:100] = -weights.w_in[:100]
    weights = MlpWeights(weights.gate, weights.w_in, w_out)
    pairs = mismatched_regions(mismatched_cosines(weights, seed=0, n_pairs=8000), 0.05)
    corrected = beta_regions(64, 0.05 / 1000, gated=True)
    found = outside(Cosines.of(weights), corrected)
    assert found["in_out"] == 100
    assert found["gate_out"] == 0
    assert 100 <= outside(Cosines.of(weights), pairs)["in_out"] < 180


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_a_level_outside_0_to_1_is_refused(alpha: float):
    with pytest.raises(UserError, match="alpha must be a number above 0 and below 1"):
        beta_region(8, alpha)
