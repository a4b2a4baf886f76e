"""Coarse and refined sets worked out by hand, negatives, relations, overlaps."""

import pytest
import torch

from circuitcut.attribution.knowledge.unit_sets import (
    coarse,
    mean_overlap,
    most_common,
    of_relation,
    refined,
    refined_to_size,
    without_negatives,
)
from circuitcut.storage.errors import UserError

A, B, C, D = (0, 1), (0, 2), (1, 0), (1, 3)


def units(*members: tuple[int, int]) -> frozenset[tuple[int, int]]:
    return frozenset(members)


def test_coarse_sets_by_each_rule():
    scores = torch.tensor([[0.1, 1.0, 0.2], [-3.0, 0.5, 0.19]])
    assert coarse(scores, threshold=0.2) == units((0, 1), (1, 1))
    assert coarse(scores, adaptive=0.2) == units((0, 1), (0, 2), (1, 1))
    assert coarse(scores, percentile=70.0) == units((0, 1), (1, 1))
    assert coarse(-scores.abs(), adaptive=0.2) == units()


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"threshold": 0.1, "adaptive": 0.2},
        {"adaptive": 1.5},
        {"percentile": 100.0},
    ],
)
def test_a_coarse_set_needs_exactly_one_rule(rules: dict[str, float]):
    with pytest.raises(
        UserError, match=r"exactly one of|argument (adaptive|percentile)"
    ):
        coarse(torch.ones(1, 2), **rules)


def test_refined_units_are_in_more_than_the_share_of_the_paraphrases():
    sets = [units(A, B), units(A, C), units(A, B), units(D)]
    assert refined(sets) == units(A)  # B is in exactly half of them
    assert refined(sets, 0.3) == units(A, B)
    assert refined(sets, 0.0) == units(A, B, C, D)
    with pytest.raises(UserError, match="at least one paraphrase"):
        refined([])


def test_the_original_rule_moves_its_share_until_facts_have_two_to_five_units():
    # of 10 paraphrases: A in 10, B in 6, C in 5
    one = [units(*([A] + [B] * (i < 6) + [C] * (i < 5))) for i in range(10)]
    share, found = refined_to_size([one])
    assert share == pytest.approx(0.6)  # .7 gives A alone, .65 too
    assert found == [units(A, B)]
    # a unit must be in three paraphrases, however low the share gets
    two = [units(A, *([B] * (i < 2))) for i in range(10)]
    share, found = refined_to_size([two])
    assert share == pytest.approx(0.4)  # after six moves
    assert found == [units(A)]
    many = [units(*((2, i) for i in range(9))) for _ in range(3)]
    share, found = refined_to_size([many])
    assert share == pytest.approx(1.0)
    with pytest.raises(UserError, match="1 without, of 2"):
        refined_to_size([one, []])


def test_a_unit_that_negatives_share_is_removed():
    assert without_negatives(units(A, B), [units(B, C), units(C)]) == units(A)
    assert without_negatives(units(A, B), [units(B, C), units(C)], 0.5) == units(A, B)
    assert without_negatives(units(A, B), []) == units(A, B)


def test_a_relation_has_the_units_of_a_tenth_of_its_facts():
    facts = [units(A)] * 2 + [units(B)] + [units()] * 17
    assert of_relation(facts) == units(A)  # B is in 5 %
    assert most_common(facts, 1) == [A]
    assert most_common(facts, 9) == [A, B]


def test_of_units_of_as_many_facts_those_of_more_prompts_come_first():
    facts = [units(A, B), units(A, B, C), units(C)]  # two facts each
    prompts = [units(A), units(C), units(B, C), units(B, C), units(B)]
    assert most_common(facts, 3, prompts) == [B, C, A]  # 3, 3 and 1 prompts
    assert most_common(facts, 3) == sorted([A, B, C])


def test_overlaps_stand_beside_those_of_random_sets():
    found = mean_overlap([units(A, B), units(B, C), units(A, B)], n_units=8)
    assert found["n_pairs"] == 3
    assert found["jaccard"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    # two sets of 2 of 8: 15, 12 and 1 of 28 pairs share 0, 1 and 2 units
    assert found["random"] == pytest.approx((12 / 3 + 1) / 28)
    between = mean_overlap([units(A)], [units(A), units(B)], n_units=8)
    assert between["jaccard"] == pytest.approx(0.5)
    assert between["random"] == pytest.approx(1 / 8)
    nothing = mean_overlap([units(), units()], n_units=8)
    assert nothing == {"n_pairs": 0, "jaccard": None, "random": None}
