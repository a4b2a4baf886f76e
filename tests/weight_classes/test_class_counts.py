"""Neurons of a set by class, against counting all sets by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch

from circuitcut.weight_classes.class_counts import count_by_class, probabilities
from circuitcut.weight_classes.names import CLASSES, PLAIN

WEAKENING, OTHER = CLASSES.index("weakening"), CLASSES.index("orthogonal output")


def test_probabilities_are_shares_of_all_sets():
    """Of 7 neurons 3 in the class, 4 drawn; and two layers of 2, one drawn in each."""
    sets = [sum(unit < 3 for unit in s) for s in combinations(range(7), 4)]
    shares = [sets.count(n) / len(sets) for n in range(4)]
    assert probabilities([(7, 3, 4)]).tolist() == pytest.approx(shares)
    assert probabilities([(2, 1, 1), (2, 1, 1)]).tolist() == pytest.approx(
        [0.25, 0.5, 0.25]
    )
    assert probabilities([(5, 0, 3)]).tolist() == [1.0]


def test_a_method_that_prefers_a_layer_is_compared_within_it():
    """All of layer 1 weakens and none of layer 0: four of layer 1 are four, always."""
    classes = [torch.full((10,), OTHER), torch.full((10,), WEAKENING)]
    chosen = [torch.zeros(10, dtype=torch.bool), torch.arange(10) < 4]
    by_name = {c.name: c for c in count_by_class(classes, chosen, PLAIN)}
    found = by_name["weakening"]
    assert (found.n_class, found.n) == (10, 4)
    assert found.by_chance.expected == pytest.approx(4 * 10 / 20)
    assert found.by_layer.expected == pytest.approx(4)
    assert found.by_layer.interval == (4, 4)
    assert found.p == 1.0
    assert by_name["strengthening"].n == 0
    assert by_name["strengthening"].p == 1.0


def test_intervals_and_p_are_those_of_drawn_sets():
    rng = np.random.default_rng(0)
    classes = [torch.from_numpy(rng.permutation([WEAKENING] * k + [OTHER] * (60 - k)))
               for k in (30, 5)]  # fmt: skip
    chosen = [torch.arange(60) < 20, torch.arange(60) < 8]
    (found,) = count_by_class(classes, chosen, ["weakening"])
    weakens = [(of_layer == WEAKENING).numpy() for of_layer in classes]
    numbers = [
        weakens[0][rng.permutation(60)[:20]].sum()
        + weakens[1][rng.permutation(60)[:8]].sum()
        for _ in range(4000)
    ]
    drawn = np.array(numbers)
    assert found.by_layer.expected == pytest.approx(20 / 2 + 8 * 5 / 60)
    assert found.by_layer.expected == pytest.approx(drawn.mean(), abs=0.1)
    low, high = found.by_layer.interval
    assert ((low <= drawn) & (drawn <= high)).mean() > 0.94
    tail = min((drawn <= found.n).mean(), (drawn >= found.n).mean())
    assert found.p == pytest.approx(min(1.0, 2 * tail), abs=0.05)
