"""Schedules: closed forms, limits, errors."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.storage.errors import UserError
from circuitcut.training.schedules import SCHEDULES, learning_rate_factor, price_ramp

KINDS = st.sampled_from(SCHEDULES)


@settings(deadline=None)
@given(kind=KINDS, n_steps=st.integers(1, 400), data=st.data())
def test_a_factor_rises_to_one_and_never_rises_again(kind, n_steps: int, data):
    warmup = data.draw(st.integers(0, n_steps - 1))
    factors = [learning_rate_factor(kind, i, n_steps, warmup) for i in range(n_steps)]
    assert factors[:warmup] == [(i + 1) / warmup for i in range(warmup)]
    assert factors[warmup] == 1.0
    after = factors[warmup:]
    assert all(one >= other > 0 for one, other in pairwise(after))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1.0] * 10),
        ("linear", [1 - i / 10 for i in range(10)]),
        ("cosine", [math.cos(math.pi * i / 20) ** 2 for i in range(10)]),
        ("late", [1.0] * 7 + [0.75, 0.5, 0.25]),
    ],
)
def test_ten_steps_worked_out_by_hand(kind, expected: list[float]):
    factors = [learning_rate_factor(kind, step, 10) for step in range(10)]
    assert factors == pytest.approx(expected)


@settings(deadline=None)
@given(fraction=st.floats(0.01, 1.0), n_steps=st.integers(1, 400))
def test_the_price_rises_linearly_and_stays(fraction: float, n_steps: int):
    for step in range(n_steps):
        expected = min(1.0, step / (fraction * n_steps))
        assert price_ramp(step, n_steps, fraction) == pytest.approx(expected)


def test_without_a_ramp_the_price_is_full_from_the_first_step():
    assert price_ramp(0, 10, 0.0) == 1.0


def test_wrong_schedules_are_refused():
    with pytest.raises(UserError, match=r"warmup must lie in 0\.\.9 steps, got 10"):
        learning_rate_factor("linear", 0, 10, 10)
    with pytest.raises(UserError, match=r"ramp_fraction must lie in \[0, 1\], got 1.5"):
        price_ramp(0, 10, 1.5)
