"""Recovery: hand-made numbers, orientation, undefined values, first steps and areas."""

import math
from functools import partial

import pytest

from circuitcut.relearning.recovery import (
    FRACTIONS,
    KEPT,
    Recovery,
    area,
    broke_nothing,
    first_reached,
    recovery,
    recovery_curve,
)
from circuitcut.reports import verdict


def test_recovery_of_hand_made_scores():
    found = recovery(cut=0.5, uncut=0.8, cut_0=0.2)
    assert found.ratio == pytest.approx(0.625)
    assert found.normalised == pytest.approx(0.5)
    assert found.reason is None


def test_a_loss_that_falls_back_to_the_uncut_models_is_fully_recovered():
    # nats per token: 4 before the cut, 5 after it
    half = recovery(cut=4.5, uncut=4.0, cut_0=5.0, higher_is_better=False)
    assert half.ratio == pytest.approx(4.0 / 4.5)
    assert half.normalised == pytest.approx(0.5)
    full = recovery(cut=4.0, uncut=4.0, cut_0=5.0, higher_is_better=False)
    assert (full.ratio, full.normalised) == (1.0, 1.0)


def test_flipping_the_sign_of_all_scores_keeps_the_normalised_recovery():
    up = recovery(cut=0.45, uncut=0.7, cut_0=0.1)
    down = recovery(cut=-0.45, uncut=-0.7, cut_0=-0.1, higher_is_better=False)
    assert up.normalised == pytest.approx(down.normalised)


def test_a_cut_that_changed_nothing_has_a_ratio_but_no_normalised_recovery():
    found = recovery(cut=0.7, uncut=0.72, cut_0=0.7, minimum=0.05)
    assert found.ratio == pytest.approx(0.7 / 0.72)
    assert found.normalised is None
    assert found.reason is not None
    assert "0.02, is below 0.05" in found.reason


def test_an_uncut_model_without_the_concept_leaves_the_ratio_undefined():
    found = recovery(cut=0.4, uncut=0.01, cut_0=-0.5)
    assert found.ratio is None
    assert found.normalised == pytest.approx(0.9 / 0.51)
    assert found.reason is not None
    assert found.reason.startswith("ratio:")


@pytest.mark.parametrize("broken", ["cut", "uncut", "cut_0"])
def test_an_undefined_score_makes_recovery_undefined(broken: str):
    scores = {"cut": 0.5, "uncut": 0.8, "cut_0": 0.2} | {broken: math.nan}
    found = recovery(**scores)
    assert (found.ratio, found.normalised) == (None, None)
    assert found.reason == "a score is undefined"


def test_first_steps_are_measured_ones_and_undefined_points_are_passed_over():
    values = [None, 0.4, 0.5, 0.95]
    half, most, nearly = first_reached([0, 1, 4, 16], [0, 8, 32, 128], values)
    assert FRACTIONS == (0.5, 0.9, 0.95)
    assert (half.step, half.examples) == (4, 32)
    assert (most.step, nearly.step) == (16, 16)


def test_a_share_that_was_never_reached_has_no_step():
    assert first_reached([0, 1], [0, 8], [0.0, 0.4])[0].step is None


def test_the_area_of_a_straight_line_is_its_mean():
    assert area([0, 2, 10], [0.0, 0.2, 1.0]) == pytest.approx(0.5)
    assert area([0, 10], [1.0, 1.0]) == 1.0
    assert area([0, 5, 10], [0.0, None, 1.0]) is None
    assert area([0], [0.0]) is None


def test_a_curve_by_hand():
    curve = recovery_curve(
        [0, 1, 3], [0, 4, 12], cut=[0.1, 0.3, 0.6], uncut=[0.9, 0.9, 0.7]
    )
    assert [p.ratio for p in curve.points] == pytest.approx([1 / 9, 1 / 3, 6 / 7])
    assert [p.normalised for p in curve.points] == pytest.approx([0.0, 0.25, 5 / 6])
    assert curve.final_gap == pytest.approx(0.1)
    assert curve.area == pytest.approx((0.125 + 2 * (0.25 + 5 / 6) / 2) / 3)
    assert curve.reached["ratio"][0].step == 3
    assert curve.to_dict()["points"][2]["examples"] == 12


def test_a_cut_that_broke_nothing_has_no_recovery():
    scores = [0.7, 0.72, 0.75]
    curve = recovery_curve([0, 1, 2], [0, 1, 2], scores, scores)
    for point in curve.points:
        assert point == Recovery(None, None, "the cut broke nothing")
    assert curve.area is None
    assert curve.final_gap == 0.0


def test_what_broke_nothing_is_measured_above_a_guess_and_by_probability():
    assert KEPT == verdict.KEPT
    assert broke_nothing(0.91, 1.0)
    assert not broke_nothing(0.91, 1.0, guess=0.5)  # 82 % of what is above a guess
    assert broke_nothing(1.2, 1.0)
    loss = partial(broke_nothing, uncut_0=2.0, higher_is_better=False)
    assert loss(2.0 - math.log(0.91))
    assert not loss(2.0 - math.log(0.89))


def test_sequences_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one entry a measurement"):
        recovery_curve([0, 1], [0, 1], [0.1], [0.2, 0.3])
