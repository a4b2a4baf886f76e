"""Contracts of every gate in GATES: range, polarity, gradient, determinism."""

from typing import Any

import pytest
import torch

from circuitcut.masks.clamped import ClampedGate
from circuitcut.masks.gate import Gate
from circuitcut.masks.registry import GATES, GateSettings

pytestmark = pytest.mark.parametrize("name", sorted(GATES))


def _gate(
    name: str,
    n_units: int = 200,
    settings: GateSettings | None = None,
) -> Gate:
    gate = GATES[name](n_units, settings or GateSettings(k_min=3.0, k_max=20.0))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    gate.project_()
    return gate


def test_samples_values_and_probabilities_lie_between_zero_and_one(name: str):
    gate = _gate(name)
    sample = gate.sample(torch.Generator().manual_seed(0))
    for gates in (sample, gate.values(), gate.keep_probs()):
        assert gates.shape == (200,)
        assert gates.dtype == torch.float32
        assert (gates >= 0).all()
        assert (gates <= 1).all()


def test_higher_scores_are_kept_at_least_as_much(name: str):
    gate = _gate(name)
    order = gate.scores().argsort()
    assert (gate.values()[order].diff() >= 0).all()
    assert (gate.keep_probs()[order].diff() >= 0).all()


def test_a_fresh_gate_keeps_almost_everything(name: str):
    gate = GATES[name](2000, GateSettings(k_min=3.0, k_max=20.0))
    assert (gate.values() > 0.95).all()


def test_the_same_generator_gives_the_same_sample(name: str):
    gate = _gate(name)
    first, second = (gate.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_loss_that_wants_a_unit_ablated_lowers_its_score_against_the_others(
    name: str,
):
    gate = GATES[name](30, GateSettings(k_min=3.0, k_max=20.0))
    rng = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(gate.parameters(), lr=0.1)
    for _ in range(40):
        optimiser.zero_grad()
        gate.sample(rng)[4].backward()
        optimiser.step()
        gate.project_()
    assert gate.scores().argmin() == 4
    assert gate.saturated_share() <= 1.0


def test_gates_stay_in_their_range_after_every_step(name: str):
    gate = _gate(name)
    optimiser = torch.optim.SGD(gate.parameters(), lr=50.0)
    rng = torch.Generator().manual_seed(0)
    for sign in (1, -1, -1, 1):
        optimiser.zero_grad()
        (sign * gate.sample(rng)).sum().backward()
        optimiser.step()
        gate.project_()
        assert ((gate.values() >= 0) & (gate.values() <= 1)).all()
        if isinstance(gate, ClampedGate):
            assert ((gate.gate >= 0) & (gate.gate <= 1)).all()


@pytest.mark.parametrize("direction", ["break", "isolate"])
def test_gates_with_a_budget_ablate_the_asked_number_and_others_stay(
    name: str, direction: Any
):
    for penalty in ("none",) if name == "clamped" else ("none", "budget"):
        settings = GateSettings(
            k_min=3.0, k_max=20.0, direction=direction, penalty=penalty
        )
        gate = _gate(name, settings=settings)
        for n_ablated in (0, 1, 7, 150, 200):
            values = gate.values_ablating(n_ablated)
            if GATES[name].has_threshold(settings):
                torch.testing.assert_close(values, gate.values(), rtol=0, atol=0)
            else:  # of nothing and everything, half a unit is left
                expected = min(max(n_ablated, 0.5), 199.5)
                assert (1 - values).sum().item() == pytest.approx(expected, abs=1e-2)
