"""Hard-concrete gates: closed form against samples, captum as oracle, limits."""

import math

import pytest
import torch
from captum.module import BinaryConcreteStochasticGates
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.masks.hard_concrete import HardConcreteGate
from circuitcut.masks.registry import GateSettings
from circuitcut.storage.errors import UserError

N_SAMPLED = 20_000


def _gate(log_alpha: torch.Tensor) -> HardConcreteGate:
    gate = HardConcreteGate(log_alpha.numel(), GateSettings())
    with torch.no_grad():
        gate.log_alpha.copy_(log_alpha)
    return gate


@settings(max_examples=20, deadline=None)
@given(keep_prob=st.floats(min_value=0.01, max_value=0.99), seed=st.integers(0, 100))
def test_the_sampled_frequency_is_the_closed_form(keep_prob: float, seed: int):
    gate = HardConcreteGate(N_SAMPLED, GateSettings(keep_prob=keep_prob))
    torch.testing.assert_close(gate.keep_probs(), torch.full((N_SAMPLED,), keep_prob))
    sample = gate.sample(torch.Generator().manual_seed(seed))
    standard_error = (keep_prob * (1 - keep_prob) / N_SAMPLED) ** 0.5
    assert abs((sample > 0).float().mean().item() - keep_prob) < 5 * standard_error


def test_a_power_bends_the_samples_between_0_and_1_and_nothing_else():
    plain = _gate(torch.linspace(-3, 3, 400))
    bent = HardConcreteGate(400, GateSettings(power=5.0))
    bent.load_state_dict(plain.state_dict())
    first, second = (
        gate.sample(torch.Generator().manual_seed(3)) for gate in (plain, bent)
    )
    torch.testing.assert_close(second, first**5)
    assert torch.equal(second == 0, first == 0)
    assert torch.equal(second == 1, first == 1)
    assert torch.equal(bent.values(), plain.values())
    assert torch.equal(bent.keep_probs(), plain.keep_probs())
    with pytest.raises(UserError, match="power must be positive"):
        HardConcreteGate(2, GateSettings(power=0.0))


@pytest.mark.parametrize("location", [-3.0, 0.0, 1.609, 2.398, 3.0, 5.0])
def test_the_share_of_saturated_gates_is_the_frequency_of_exact_zeros_and_ones(
    location: float,
):
    gate = _gate(torch.full((N_SAMPLED,), location))
    sample = gate.sample(torch.Generator().manual_seed(1))
    saturated = ((sample == 0) | (sample == 1)).float().mean().item()
    expected = gate.saturated_share()
    standard_error = max(expected * (1 - expected) / N_SAMPLED, 1e-6) ** 0.5
    assert abs(saturated - expected) < 5 * standard_error


@pytest.mark.parametrize(
    ("log_alpha", "keep_prob", "value"),
    [(-3.0, 0.198, 0.0), (0.0, 0.832, 0.5), (1.609, 0.961, 0.9), (3.0, 0.990, 1.0)],
)
def test_the_published_table_of_locations_is_reproduced(
    log_alpha: float, keep_prob: float, value: float
):
    gate = _gate(torch.tensor([log_alpha]))
    assert gate.keep_probs().item() == pytest.approx(keep_prob, abs=5e-4)
    assert gate.values().item() == pytest.approx(value, abs=5e-4)


def test_captum_has_the_same_keep_probabilities_and_test_time_gates():
    log_alpha = torch.linspace(-6, 6, 51)
    oracle = BinaryConcreteStochasticGates(51)
    oracle.load_state_dict({"log_alpha_param": log_alpha}, strict=False)
    gate = _gate(log_alpha)
    torch.testing.assert_close(gate.keep_probs(), oracle.get_gate_active_probs())
    torch.testing.assert_close(gate.values(), oracle.get_gate_values())


def test_captum_draws_from_the_same_distribution():
    log_alpha = torch.full((N_SAMPLED,), 0.7)
    oracle = BinaryConcreteStochasticGates(N_SAMPLED)
    oracle.load_state_dict({"log_alpha_param": log_alpha}, strict=False)
    torch.manual_seed(0)
    theirs = oracle.train()(torch.ones(1, N_SAMPLED))[0].squeeze(0).detach()
    ours = _gate(log_alpha).sample(torch.Generator().manual_seed(0)).detach()
    levels = torch.linspace(0, 1, 21)
    ours_below = (ours.unsqueeze(1) <= levels).float().mean(0)
    theirs_below = (theirs.unsqueeze(1) <= levels).float().mean(0)
    # Kolmogorov-Smirnov at about five standard errors
    assert (ours_below - theirs_below).abs().max() < 2.5 * math.sqrt(2 / N_SAMPLED)


def test_values_are_monotone_in_the_location_and_reach_both_ends():
    gate = _gate(torch.linspace(-8, 8, 101))
    assert (gate.values().diff() >= 0).all()
    assert (gate.values()[0], gate.values()[-1]) == (0.0, 1.0)
    assert (gate.keep_probs().diff() > 0).all()


def test_test_time_gates_are_one_exactly_from_a_keep_probability_of_982_thousandths():
    barely = HardConcreteGate(1, GateSettings(keep_prob=0.9824))
    not_quite = HardConcreteGate(1, GateSettings(keep_prob=0.981))
    assert barely.values().item() == 1.0
    assert not_quite.values().item() < 1.0


@pytest.mark.parametrize("keep_prob", [0.0, 1.0, -0.1, float("nan")])
def test_keep_prob_outside_the_open_interval_is_refused(keep_prob: float):
    with pytest.raises(UserError, match="keep_prob must lie"):
        HardConcreteGate(2, GateSettings(keep_prob=keep_prob))
