"""Measures of edits from probabilities and ranks that are worked out by hand."""

import math

import pytest
import torch

from circuitcut.attribution.knowledge.edits import Told, measures, told


def test_ranks_count_what_is_higher_and_probabilities_are_of_the_whole_vocabulary():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.4, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    first, even = told(logits, old=2, new=0)
    assert (first.rank_old, first.rank_new) == (1, 4)
    assert (first.p_old, first.p_new) == pytest.approx((0.4, 0.1))
    # of equal logits none is higher
    assert (even.rank_old, even.rank_new) == (1, 1)
    assert even.p_new == pytest.approx(0.25)


def test_the_measures_of_an_edit_by_hand():
    before = measures(Told(0.6, 0.1, 1, 8), [], [])
    assert before == {
        "changed": 0.0,
        "success": 0.0,
        "success_at_5": 0.0,
        "prefers_target": 0.0,
        "reciprocal_rank": 1 / 8,
        "rank": 8.0,
        "probability": 0.1,
    }
    paraphrases = [Told(0.2, 0.3, 3, 2), Told(0.3, 0.2, 1, 2), Told(0.1, 0.4, 4, 1)]
    neighbours = [Told(0.5, 0.1, 1, 3), Told(0.1, 0.5, 3, 1)]
    after = measures(Told(0.05, 0.2, 6, 5), paraphrases, neighbours)
    assert after == {
        "changed": 1.0,
        "success": 0.0,
        "success_at_5": 1.0,
        "prefers_target": 1.0,
        "reciprocal_rank": 0.2,
        "rank": 5.0,
        "probability": 0.2,
        "paraphrase_success": pytest.approx(2 / 3),
        "neighbourhood_success": 0.5,
    }
    assert measures(Told(0.1, 0.8, 2, 1), [], [])["success"] == 1.0


def test_a_rank_does_not_depend_on_rounding_to_equal_probabilities():
    logits = torch.tensor([[0.0, 200.0, 100.0]])
    (one,) = told(logits, old=0, new=2)
    assert (one.rank_old, one.rank_new) == (3, 2)
    assert one.p_new == pytest.approx(math.exp(-100))
