"""Penalties: signs of price and multipliers, and the asked-for number is reached."""

import pytest
import torch

from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.penalties import Lagrangian, Price
from circuitcut.masks.registry import GateSettings
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

SITES = (Site("neurons", "a", 0, 60), Site("neurons", "b", 1, 40))


def _masks(keep_prob: float = 0.6) -> MaskSet:
    return MaskSet(SITES, "hard_concrete", GateSettings(keep_prob=keep_prob))


def test_a_price_is_nats_per_unit_times_the_expected_number():
    masks = _masks(0.6)
    for direction, n_priced in (("break", 40.0), ("isolate", 60.0)):
        price = Price(0.01, direction=direction, ramp_fraction=0.5)
        for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
            nats = price(masks, progress).item()
            assert nats == pytest.approx(0.01 * n_priced * share, rel=1e-5)


def test_the_published_price_of_an_edge_grows_from_epoch_20_on():
    """R_t = (sum of z) max(0, t - 20) / 10,000, with t of 100 epochs."""
    masks = _masks(0.6)
    price = Price(0.008, direction="break", start_fraction=0.2, ramp_fraction=0.8)
    for epoch in (0, 20, 21, 60, 99):
        published = 40 * max(0, epoch - 20) / 10_000
        assert price(masks, epoch / 100).item() == pytest.approx(published, rel=1e-5)


def test_the_published_price_of_a_weight_is_on_its_square_root():
    """mean of sqrt(1.01 - z) times min(step, 8000) / 10, of 12,000 steps."""
    masks = MaskSet(SITES, "clamped", GateSettings())
    z = torch.linspace(0, 1, 100)
    with torch.no_grad():
        masks.gate.gate.copy_(z)
    price = Price(800 / 100, direction="break", ramp_fraction=2 / 3, shape="sqrt")
    for step in (0, 4000, 8000, 11_999):
        published = (1.01 - z).sqrt().mean() * min(step, 8000) / 10
        nats = price(masks, step / 12_000)
        assert nats.item() == pytest.approx(published.item(), rel=1e-5)
    kept = Price(1.0, direction="isolate", shape="sqrt")
    expected = (z + 0.01).sqrt().sum()
    torch.testing.assert_close(kept(masks, 1.0), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("direction", "sign"), [("break", -1.0), ("isolate", 1.0)])
def test_break_prices_ablated_units_and_isolate_kept_ones(direction: str, sign: float):
    masks = _masks()
    Price(0.01, direction=direction)(masks, 1.0).backward()
    # descent then raises log alpha in break and lowers it in isolate
    assert (masks.gate.log_alpha.grad.sign() == sign).all()


@pytest.mark.parametrize(("keep_prob", "sign"), [(0.9, -1.0), (0.2, 1.0)])
def test_ascended_multipliers_push_the_gates_towards_the_asked_number(
    keep_prob: float, sign: float
):
    masks = _masks(keep_prob)
    penalty = Lagrangian(direction="break", n_units=100, count=50.0, ramp_fraction=0.0)
    optimiser = torch.optim.SGD(penalty.parameters(), lr=1.0, maximize=True)
    penalty(masks, 1.0).backward()
    optimiser.step()
    # too few ablated: the linear multiplier turns negative, too many: positive
    assert penalty.linear.sign().item() == sign
    assert penalty.quadratic.item() > 0
    for multiplier in (penalty.linear, penalty.quadratic):
        (gradient,) = torch.autograd.grad(penalty(masks, 1.0), masks.gate.log_alpha)
        assert (gradient.sign() == -sign).all()
        with torch.no_grad():
            multiplier.zero_()
            penalty.quadratic.fill_(1.0)


@pytest.mark.parametrize(
    ("direction", "asked"),
    [("break", {"count": 12.0}), ("isolate", {"fraction": 0.12})],
)
def test_with_a_constant_task_loss_the_asked_number_is_reached(direction: str, asked):
    masks = _masks(0.95 if direction == "break" else 0.9)
    penalty = Lagrangian(direction=direction, n_units=100, **asked)
    gates = torch.optim.Adam(masks.parameters(), lr=0.2)
    multipliers = torch.optim.Adam(penalty.parameters(), lr=0.3, maximize=True)
    for step in range(400):
        gates.zero_grad()
        multipliers.zero_grad()
        penalty(masks, step / 200).backward()
        gates.step()
        multipliers.step()
    report = penalty.report(masks)
    assert report["n_asked"] == pytest.approx(12.0)
    assert report["n_expected"] == pytest.approx(12.0, abs=0.5)


def test_the_target_moves_from_nothing_ablated_to_the_asked_share():
    masks = _masks(0.6)
    penalty = Lagrangian(
        direction="isolate", n_units=100, count=20.0, ramp_fraction=0.5
    )
    with torch.no_grad():
        penalty.linear.fill_(1.0)
    excess = [penalty(masks, progress).item() for progress in (0.0, 0.25, 0.5, 1.0)]
    # 40 units are ablated, 0, 40, 80 and 80 shall be: in parts of the 20 to be kept
    assert excess == pytest.approx([2.0, 0.0, -2.0, -2.0], abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "exactly one"),
        ({"count": 3.0, "fraction": 0.1}, "exactly one"),
        ({"count": 101.0}, "between 0 and the 100 gated units, got 101"),
        ({"fraction": -0.1}, r"between 0 and the 100 gated units, got -0\.1"),
        ({"count": 3.0, "ramp_fraction": 2.0}, "ramp_fraction"),
    ],
)
def test_impossible_requests_are_refused(asked: dict[str, float], told: str):
    with pytest.raises(UserError, match=told):
        Lagrangian(direction="break", n_units=100, **asked)


def test_a_negative_price_and_a_start_after_the_run_are_refused():
    with pytest.raises(UserError, match="at least 0 nats"):
        Price(-0.1, direction="break")
    with pytest.raises(UserError, match=r"price_start must lie in \[0, 1\), got 1"):
        Price(0.1, direction="break", start_fraction=1.0)
