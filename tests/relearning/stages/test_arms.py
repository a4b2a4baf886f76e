"""Arms, shares and the choice of a share."""

import pytest

from circuitcut.relearning.stages.arms import Arm, arms, check_shares, n_pruned
from circuitcut.relearning.stages.choosing import Pruned, concept_specific
from circuitcut.storage.errors import UserError


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


SCAN = [Pruned(0.5, 0.0, 0.1), Pruned(0.05, 0.4, 0.88), Pruned(0.1, 0.08, 0.85)]


def test_the_smallest_share_that_leaves_a_tenth_is_chosen():
    base = Pruned(0.0, 0.9, 0.9)
    choice = concept_specific(base, SCAN, higher_is_better=True)
    assert choice.share == 0.1
    assert "smallest share" in choice.reason


def test_where_no_share_does_so_the_most_specific_one_is_chosen():
    base = Pruned(0.0, 0.9, 0.9)
    choice = concept_specific(base, SCAN[1:2], higher_is_better=True)
    assert choice.share == 0.05
    alone = [Pruned(0.1, 0.6, float("nan")), Pruned(0.5, 0.3, float("nan"))]
    assert concept_specific(base, alone, higher_is_better=True).share == 0.5
    loss = [Pruned(0.1, 3.0, 1.2), Pruned(0.5, 5.0, 4.0)]
    found = concept_specific(Pruned(0.0, 1.0, 1.0), loss, higher_is_better=False)
    assert found.share == 0.1  # 2.0 - .2 against 4.0 - 3.0
