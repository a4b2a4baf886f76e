"""Soft top-k: the sum is k, the gradient is the implicit one, the limit is hard."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.masks.registry import GateSettings
from circuitcut.masks.soft_topk import SoftTopKGate, soft_topk
from circuitcut.storage.errors import UserError


def _scores(n_units: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n_units, generator=rng).double()


@pytest.mark.parametrize("n_units", [2, 64, 1001])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_the_gates_sum_to_k_from_a_half_to_almost_all(n_units: int, temperature: float):
    for k in (0.5, 1.0, n_units / 2, n_units - 0.01):
        gates = soft_topk(_scores(n_units), k, temperature)
        assert abs(gates.sum().item() - k) < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40),
    share=st.floats(0.01, 0.99),
    temperature=st.floats(0.01, 10),
)
def test_any_scores_are_solved(scores: list[float], share: float, temperature: float):
    k = share * len(scores)
    gates = soft_topk(torch.tensor(scores).double(), k, temperature)
    assert abs(gates.sum().item() - k) < 1e-6


def test_equal_scores_share_k_equally():
    gates = soft_topk(torch.zeros(9216).double(), 25.0, 0.5)
    torch.testing.assert_close(gates, torch.full((9216,), 25 / 9216).double())


def test_many_units_are_solved_to_thirty_trillionths():
    gates = soft_topk(_scores(32_491), 100.0, 0.5)
    assert abs(gates.sum().item() - 100.0) < 1e-8


def test_the_gradient_is_that_of_finite_differences():
    scores = _scores(7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_topk(s, 2.5, 0.7), scores)


def test_the_gradient_sums_to_zero():
    scores = _scores(50).requires_grad_()
    soft_topk(scores, 5.0, 0.5).square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() > 1e-3
    assert abs(scores.grad.sum().item()) < 1e-12


def test_a_vanishing_temperature_gives_the_hard_top_k():
    scores = _scores(50)
    gates = soft_topk(scores, 7.0, 1e-4)
    hard = torch.zeros(50).double()
    hard[scores.topk(7).indices] = 1.0
    torch.testing.assert_close(gates, hard)


def test_a_larger_k_never_lowers_a_gate():
    gates = [soft_topk(_scores(30), k, 0.5) for k in (0.5, 1.0, 4.0, 15.0, 29.5)]
    assert all((after >= before).all() for before, after in pairwise(gates))


@pytest.mark.parametrize("direction", ["break", "isolate"])
def test_k_counts_ablated_units_in_break_and_kept_ones_in_isolate(direction: str):
    gate = SoftTopKGate(100, GateSettings(direction=direction, k_min=4.0, k_max=9.0))
    with torch.no_grad():
        gate.score.copy_(_scores(100).float())
    gates = gate.at(6.0)
    counted = (1 - gates).sum() if direction == "break" else gates.sum()
    assert counted.item() == pytest.approx(6.0, abs=1e-4)
    # the highest scores are kept in both
    assert (gates[gate.score.argsort()].diff() >= 0).all()


def test_k_is_log_uniform_between_its_bounds():
    gate = SoftTopKGate(1000, GateSettings(direction="isolate", k_min=6.0, k_max=64.0))
    rng = torch.Generator().manual_seed(0)
    logs = torch.tensor(
        [math.log(gate.sample(rng).sum().item()) for _ in range(400)]
    ).double()
    assert math.log(6) - 1e-4 <= logs.min() <= logs.max() <= math.log(64) + 1e-4
    uniform = (logs.sort().values - math.log(6)) / math.log(64 / 6)
    expected = (torch.arange(400) + 0.5) / 400
    assert (uniform - expected).abs().max() < 2.2 / math.sqrt(400)


def test_the_values_are_the_gates_of_the_geometric_mean_of_the_bounds():
    gate = SoftTopKGate(500, GateSettings(k_min=4.0, k_max=64.0))
    assert (1 - gate.values()).sum().item() == pytest.approx(16.0, abs=1e-3)


def test_the_temperature_falls_over_four_fifths_of_the_run_and_rests():
    gate = SoftTopKGate(500, GateSettings(temperature_start=1.0, temperature_end=0.2))
    seen = []
    for progress in (0.0, 0.4, 0.8, 0.9, 1.0):
        gate.anneal(progress)
        seen.append(gate.temperature)
    assert seen == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"k_min": 0.0}, "0 < k_min"),
        ({"k_min": 9.0, "k_max": 8.0}, "k_min <= k_max"),
        ({"k_max": 100.0}, r"below the number of gated units \(100\)"),
        ({"temperature_end": 0.0}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], told: str):
    with pytest.raises(UserError, match=told):
        SoftTopKGate(100, GateSettings(**wrong))
