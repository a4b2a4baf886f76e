"""Hard-concrete gates with a budget: exact sums, and the slope of expected gates."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.masks.gate_settings import BudgetSettings, in_units
from circuitcut.masks.hard_concrete import HardConcreteGate, _Curve
from circuitcut.masks.registry import GateSettings

N = 400


def _gate(**changes: Any) -> HardConcreteGate:
    gate = HardConcreteGate(N, GateSettings(penalty="budget", **changes))
    with torch.no_grad():
        rng = torch.Generator().manual_seed(7)
        gate.log_alpha.copy_(2 * torch.randn(N, generator=rng))
    return gate


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    k=st.floats(0.3, N - 0.3),
    direction=st.sampled_from(["break", "isolate"]),
    power=st.sampled_from([1.0, 5.0]),
    scale=st.floats(0.01, 100.0),
)
def test_every_sample_holds_the_budget(
    k: float, direction: Any, power: float, scale: float
):
    gate = _gate(direction=direction, power=power)
    noise = scale * torch.randn(N, generator=_rng())
    gates = gate.at(k, noise)
    counted = 1 - gates if direction == "break" else gates
    assert counted.sum().item() == pytest.approx(k, rel=1e-5, abs=1e-4)
    assert ((gates >= 0) & (gates <= 1)).all()


def test_budgets_are_drawn_log_uniformly_and_come_down_from_all_units():
    gate = _gate(k_min=2.0, k_max=32.0, opening=0.5)
    sums = {}
    for progress in (0.0, 0.25, 0.5, 0.9):
        gate.anneal(progress)
        drawn = [(1 - gate.sample(_rng(i))).sum().item() for i in range(200)]
        sums[progress] = torch.tensor(drawn).log()
    assert sums[0.0].exp() == pytest.approx(0.99 * N, rel=1e-3)
    middle = (math.log(2 * 32) / 2 + math.log(0.99 * N)) / 2
    assert sums[0.25].mean().item() == pytest.approx(middle, abs=0.15)
    for late in (0.5, 0.9):
        assert sums[late].exp().min() >= 1.999
        assert sums[late].exp().max() <= 32.001
        assert sums[late].mean().item() == pytest.approx(math.log(8), abs=0.2)


@pytest.mark.parametrize("power", [1.0, 5.0])
@pytest.mark.parametrize("noise", [1.0, 0.2])
def test_the_slope_is_that_of_the_mean_of_a_million_samples(noise: float, power: float):
    curve = _Curve(beta=2 / 3, noise=noise, power=power)
    u = (torch.arange(1_000_000).double() + 0.5) / 1_000_000
    drawn = noise * u.logit()
    for location in (-2.0, -0.5, 0.0, 0.7, 1.6):
        above, below = (
            curve.at(drawn + location + step)[0].mean() for step in (1e-3, -1e-3)
        )
        numeric = ((above - below) / 2e-3).item()
        exact = curve.expected_slope(torch.tensor([location]).double()).item()
        assert exact == pytest.approx(numeric, abs=5e-3)


def test_the_derivative_of_a_gate_is_that_of_finite_differences():
    for power in (1.0, 3.0):
        curve = _Curve(beta=0.5, noise=1.0, power=power)
        points = torch.linspace(-3, 3, 41).double()
        above, below = curve.at(points + 1e-6)[0], curve.at(points - 1e-6)[0]
        torch.testing.assert_close(
            curve.at(points)[1], (above - below) / 2e-6, atol=1e-5, rtol=1e-4
        )


def test_the_gradient_is_that_of_the_expected_loss_where_the_loss_is_linear():
    """Finite differences of the mean loss, against the mean of the estimator."""
    n = 6
    gate = HardConcreteGate(n, GateSettings(penalty="budget", k_min=2.0, k_max=2.0))
    weights = torch.linspace(-1, 1, n)
    locations = torch.linspace(-0.8, 0.8, n)
    noises = torch.rand(500, n, generator=_rng()).clamp(1e-6, 1 - 1e-6).logit()

    def mean_loss(at: torch.Tensor) -> float:
        with torch.no_grad():
            gate.log_alpha.copy_(at)
            losses = [(gate.at(2.0, noise) * weights).sum() for noise in noises[:200]]
        return torch.stack(losses).mean().item()

    numeric = []
    for i in range(n):
        step = torch.zeros(n)
        step[i] = 0.2
        difference = mean_loss(locations + step) - mean_loss(locations - step)
        numeric.append(difference / 0.4)
    with torch.no_grad():
        gate.log_alpha.copy_(locations)
    gate.log_alpha.grad = None
    for noise in noises[200:]:
        ((gate.at(2.0, noise) * weights).sum() / 300).backward()
    estimated = gate.log_alpha.grad
    assert estimated is not None
    assert abs(estimated.sum().item()) < 1e-4
    cosine = torch.cosine_similarity(estimated, torch.tensor(numeric), dim=0)
    assert cosine > 0.97
    assert estimated.norm().item() == pytest.approx(
        torch.tensor(numeric).norm().item(), rel=0.25
    )


def test_every_gate_has_a_gradient_where_few_samples_have_one():
    """The reason for the estimator: 20 of 9,216 units, all locations equal."""
    gate = HardConcreteGate(
        9216, GateSettings(penalty="budget", k_min=20.0, k_max=20.0)
    )
    gates = gate.sample(_rng())
    between = ((gates > 0) & (gates < 1)).float().mean().item()
    assert between < 0.05
    (gates * torch.randn(9216, generator=_rng(1))).sum().backward()
    grad = gate.log_alpha.grad
    assert grad is not None
    assert (grad.abs() > 1e-8).float().mean() > 0.99


def test_with_little_noise_nearly_all_gates_are_zero_or_one():
    gate = _gate(k_min=20.0, k_max=20.0)
    with torch.no_grad():
        gate.log_alpha.mul_(5)
    gate.anneal(1.0)
    gates = gate.sample(_rng())
    assert ((gates == 0) | (gates == 1)).float().mean() > 0.9


def test_ranges_are_units_or_shares_and_made_to_fit():
    asked = BudgetSettings(k_min=0.001, k_max=0.01)
    assert in_units(asked, 70_651).k_min == pytest.approx(70.651)
    assert in_units(asked, 70_651).k_max == pytest.approx(706.51)
    few = in_units(asked, 270)
    assert (few.k_min, few.k_max) == (pytest.approx(0.27), 2.7)
    assert in_units(BudgetSettings(k_min=6.0, k_max=64.0), 20).k_max == 10.0
    assert in_units(BudgetSettings(k_min=6.0, k_max=64.0), 20).k_min == 2.5


def test_a_falling_beta_closes_or_opens_the_gates_of_a_sample():
    """Little noise, as in large graphs: beta alone sets how many gates are between."""
    partly_open = {}
    for end in (2 / 3, 0.05):
        gate = _gate(k_min=20.0, k_max=20.0, direction="isolate", noise_end=0.1)
        falling = _gate(
            k_min=20.0,
            k_max=20.0,
            direction="isolate",
            noise_end=0.1,
            stretch_temperature_end=end,
        )
        torch.testing.assert_close(falling.at(20.0), gate.at(20.0))
        falling.anneal(0.4)
        assert falling.beta == pytest.approx((2 / 3 + end) / 2)
        falling.anneal(1.0)
        assert falling.beta == pytest.approx(end)
        gates = falling.sample(_rng())
        assert gates.sum().item() == pytest.approx(20.0, rel=1e-4)
        partly_open[end] = int(((gates > 0) & (gates < 1)).sum())
    assert partly_open[0.05] < partly_open[2 / 3] / 4


def test_beta_of_gates_with_a_price_stays():
    gate = HardConcreteGate(
        N, GateSettings(penalty="price", stretch_temperature_end=0.05)
    )
    gate.anneal(1.0)
    assert gate.beta == pytest.approx(2 / 3)
