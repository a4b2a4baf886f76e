"""Arms, shares and the choice of a share."""

import math

import pytest

from circuitcut.relearning.stages.abilities import left_of
from circuitcut.relearning.stages.arms import Arm, arms, check_shares, n_pruned
from circuitcut.relearning.stages.choosing import Pruned, concept_specific
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Metric


def test_arms_are_all_combinations_and_uncut_comes_once():
    found = arms(["cut", "uncut"], ["lasting", "one_shot"], [0.1, 0.5], 3)
    assert [arm.key for arm in found] == [
        "cut-lasting-0.1",
        "cut-one_shot-0.1",
        "uncut",
        "cut-lasting-0.5",
        "cut-one_shot-0.5",
    ]
    assert {arm.seed for arm in found} == {3}
    assert found[2] == Arm("uncut", None, 0.0, 3)


@pytest.mark.parametrize(
    ("conditions", "holdings", "said"),
    [
        (["burnt"], ["lasting"], "--conditions must be among"),
        (["cut"], ["twice"], "--holdings must be among"),
        ([], ["lasting"], "--conditions"),
    ],
)
def test_unknown_names_are_refused(conditions, holdings, said):
    with pytest.raises(UserError, match=said):
        arms(conditions, holdings, [0.1], 0)


@pytest.mark.parametrize("shares", [[0.0], [-0.1], [1.5], [float("nan")], []])
def test_what_is_no_share_is_refused(shares):
    with pytest.raises(UserError, match="--shares must be shares"):
        check_shares("shares", shares)


def test_a_share_is_a_number_of_units_and_leaves_some():
    assert n_pruned(0.5, 5376) == 2688
    assert n_pruned(0.1, 2688) == 269
    with pytest.raises(UserError, match="leaves none of the 5376"):
        n_pruned(1.0, 5376)
    with pytest.raises(UserError, match="prunes none of the 10"):
        n_pruned(0.01, 10)


def test_shares_that_print_alike_have_folders_of_their_own():
    found = arms(["cut"], ["lasting"], [0.1, 0.1000001], 0)
    assert len({arm.key for arm in found}) == 2


# what is left of the base model's .9 and .9
SCAN = [Pruned(0.5, 0.0, 0.1), Pruned(0.05, 0.45, 0.97), Pruned(0.1, 0.09, 0.94)]


def test_the_smallest_share_that_leaves_a_tenth_is_chosen():
    choice = concept_specific(SCAN)
    assert choice.share == 0.1
    assert "smallest share" in choice.reason
    assert "leaves 9.0%" in choice.reason


def test_where_no_share_does_so_the_most_specific_one_is_chosen():
    assert concept_specific(SCAN[1:2]).share == 0.05
    alone = [Pruned(0.1, 0.6, float("nan")), Pruned(0.5, 0.3, float("nan"))]
    assert concept_specific(alone).share == 0.5
    destroyed = [Pruned(0.1, 0.3, 0.8), Pruned(0.5, 0.11, 0.02)]
    assert concept_specific(destroyed).share == 0.1  # .7 - .2 against .89 - .98


def test_of_a_base_model_without_the_ability_the_smallest_share_is_taken():
    nothing = [Pruned(share, float("nan"), 0.5) for share in (0.5, 0.1)]
    choice = concept_specific(nothing)
    assert choice.share == 0.1
    assert "no better than a guess" in choice.reason


def test_what_is_left_is_a_share_above_a_guess_or_of_the_probability_per_token():
    f1, accuracy = Metric("s", True, "fraction"), Metric("s", True, "fraction", 0.5)
    assert left_of(f1, {"s": 0.8}, {"s": 0.2}) == pytest.approx(0.25)
    assert left_of(accuracy, {"s": 0.9}, {"s": 0.6}) == pytest.approx(0.25)
    nll = Metric("s", False, "nats/token", chance=9.0)
    assert left_of(nll, {"s": 3.0}, {"s": 3.0 + math.log(4)}) == pytest.approx(0.25)
    assert math.isnan(left_of(accuracy, {"s": 0.5}, {"s": 0.6}))  # no ability before
    assert math.isnan(left_of(f1, {"s": 0.5}, {"s": None}))
