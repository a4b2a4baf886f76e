"""Cosines worked out by hand, the eleven classes, their borders and their sums."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.classes import binned, classify, counts, grouped
from circuitcut.weight_classes.cosines import COSINES, Cosines, cosines_of_layer
from circuitcut.weight_classes.mlp_weights import MlpWeights
from circuitcut.weight_classes.names import (
    CLASSES,
    COARSE,
    HALF_COARSE,
    PARTS,
    PLAIN,
    class_named,
)


def cosines(gate_in: float, gate_out: float, in_out: float) -> Cosines:
    one = torch.ones(1)
    values = (torch.tensor([x]) for x in (gate_in, gate_out, in_out))
    return Cosines(*values, one, one, one)


def class_of(*values: float, tau: float = 0.5) -> str:
    return CLASSES[int(classify(cosines(*values), tau))]


def test_cosines_are_those_worked_out_by_hand():
    weights = MlpWeights(
        gate=torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
        w_in=torch.tensor([[4.0, 3.0], [-2.0, 2.0]]),
        w_out=torch.tensor([[0.0, 5.0], [-1.0, 0.0]]),
    )
    found = Cosines.of(weights)
    # the second neuron has w_gate . w_in < 0: its w_in and w_out change their sign
    assert found.gate_in is not None
    assert found.gate_out is not None
    assert found.norm_gate is not None
    assert found.gate_in.tolist() == pytest.approx([24 / 25, math.sqrt(0.5)])
    assert found.gate_out.tolist() == pytest.approx([4 / 5, 1.0])
    assert found.in_out.tolist() == pytest.approx([3 / 5, math.sqrt(0.5)])
    assert found.norm_gate.tolist() == [5.0, 1.0]
    assert found.norm_in.tolist() == pytest.approx([5.0, math.sqrt(8)])
    assert found.norm_out.tolist() == [5.0, 1.0]


def test_a_vector_of_zeros_has_cosine_0_and_no_other_class_than_orthogonal():
    gate = torch.tensor([[1.0, 2.0]])
    found = Cosines.of(MlpWeights(gate, torch.zeros(1, 2), torch.ones(1, 2)))
    assert [float(found.by_name()[name]) for name in COSINES[::2]] == [0.0, 0.0]
    plain = Cosines.of(MlpWeights(None, torch.zeros(1, 2), torch.ones(1, 2)))
    assert CLASSES[int(classify(plain))] == "orthogonal output"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        # cos(gate, in), cos(gate, out), cos(in, out)
        ((0.9, 0.9, 0.9), "strengthening"),
        ((0.1, 0.6, 0.6), "atypical strengthening"),
        ((0.1, 0.1, 0.9), "conditional strengthening"),
        ((0.6, 0.1, 0.6), "atypical conditional strengthening"),
        ((0.1, 0.9, 0.1), "proportional change"),
        ((0.1, -0.9, 0.1), "proportional change"),
        ((0.6, 0.6, 0.1), "atypical proportional change"),
        ((0.1, 0.1, 0.1), "orthogonal output"),
        ((0.9, 0.1, 0.1), "orthogonal output"),
        ((0.9, -0.9, -0.9), "weakening"),
        ((0.1, -0.6, -0.6), "atypical weakening"),
        ((0.1, 0.6, -0.6), "atypical weakening"),
        ((0.1, 0.1, -0.9), "conditional weakening"),
        ((0.6, 0.1, -0.6), "atypical conditional weakening"),
    ],
)
def test_every_class_is_that_of_the_definition(
    values: tuple[float, float, float], name: str
):
    assert class_of(*values) == name


def test_classes_have_strict_borders_at_tau():
    above = math.nextafter(0.25, 1.0)
    assert class_of(0.25, 0.25, 0.25, tau=0.25) == "orthogonal output"
    assert class_of(0.25, 0.25, 0.2500001, tau=0.25) == "conditional strengthening"
    assert class_of(0.25, 0.25, -0.25, tau=0.25) == "orthogonal output"
    assert class_of(0.25, 0.25, -0.2500001, tau=0.25) == "conditional weakening"
    assert torch.tensor(above) == 0.25  # float32 has no number in between


@given(st.tuples(*[st.floats(-1, 1, width=32)] * 3), st.floats(0.1, 0.9))
def test_the_class_stays_when_w_in_and_w_out_change_their_sign(
    values: tuple[float, float, float], tau: float
):
    gate_in, gate_out, in_out = values
    assert class_of(*values, tau=tau) == class_of(-gate_in, -gate_out, in_out, tau=tau)


def test_cosines_are_the_same_whichever_sign_the_checkpoint_has():
    rng = torch.Generator().manual_seed(0)
    gate, w_in, w_out = torch.randn(3, 40, 6, generator=rng)
    flip = torch.where(torch.rand(40, 1, generator=rng) < 0.5, -1.0, 1.0)
    one = Cosines.of(MlpWeights(gate, w_in, w_out)).by_name()
    other = Cosines.of(MlpWeights(gate, w_in * flip, w_out * flip)).by_name()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (one["gate_in"] >= 0).all()


def test_counts_of_all_classes_add_up_to_the_neurons():
    grid = [-1.0, -0.5, 0.0, 0.5, 0.6]
    triples = torch.tensor(list(product(grid, repeat=3)))
    ones = torch.ones(len(triples))
    found = classify(Cosines(*triples.T, ones, ones, ones))
    counted = counts(found, gated=True)
    assert list(counted) == list(CLASSES)
    assert sum(counted.values()) == len(triples) == 125
    assert min(counted.values()) > 0
    for groups, n in ((HALF_COARSE, 6), (COARSE, 3)):
        sums = grouped(counted, groups)
        assert len(sums) == n
        assert sum(sums.values()) == 125
    # a alone: cos(w_in, w_out) is above .5 for one of five values, below -.5 for one
    assert grouped(counted, COARSE) == {
        "strengthening": 25,
        "neither": 75,
        "weakening": 25,
    }


def test_a_plain_neuron_has_one_of_three_classes():
    w_in = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    w_out = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    found = classify(cosines_of_layer([MlpWeights(None, w_in, w_out)]))
    assert counts(found, gated=False) == dict.fromkeys(PLAIN, 1)


def test_experts_are_further_rows():
    rng = torch.Generator().manual_seed(0)
    parts = [MlpWeights(*torch.randn(3, n, 8, generator=rng)) for n in (4, 7)]
    joined = cosines_of_layer(iter(parts))
    assert joined.n_units == 11
    assert joined.gate_in is not None
    second = Cosines.of(parts[1]).gate_in
    assert second is not None
    assert torch.equal(joined.gate_in[4:], second)


def test_bins_are_those_of_the_formula():
    x = torch.tensor([-1.0, -0.81, -0.79, -0.01, 0.0, 0.19, 0.2, 0.99, 1.0])
    found = binned(x, 10)
    assert list(found) == pytest.approx(
        [-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8]
    )
    assert list(found.values()) == [2, 1, 0, 0, 1, 2, 1, 0, 0, 2]
    assert binned(x, 2) == {-1.0: 4, 0.0: 5}


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_a_threshold_outside_0_to_1_is_refused(tau: float):
    with pytest.raises(UserError, match="tau must be a number above 0 and below 1"):
        classify(cosines(0.0, 0.0, 0.0), tau)


def test_names_are_read_as_one_types_them():
    assert class_named("conditional_weakening") == "conditional weakening"
    assert class_named("Atypical-Strengthening") == "atypical strengthening"
    assert class_named("conditional enrichment") == "conditional strengthening"
    assert class_named("depletion") == "weakening"
    assert class_named("strong") is None
    assert len(set(PARTS.values())) == 11
