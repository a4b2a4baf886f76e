"""Sets of neurons: all of a class, some of it, and controls matched by layer."""

import pytest
import torch

from circuitcut.masks.ablation import zero_values
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.names import CLASSES
from circuitcut.weight_classes.selection import (
    by_frequency,
    classes_of,
    control,
    drawn,
    frozen_mask,
    matched_control,
    members,
    n_chosen,
    number_of,
)
from tests.models.tiny import D_MLP, tiny_model

WEAK, STRONG = CLASSES.index("weakening"), CLASSES.index("strengthening")
OTHER = CLASSES.index("orthogonal output")
LAYERS = [
    torch.tensor([WEAK, OTHER, WEAK, OTHER, OTHER, STRONG]),
    torch.tensor([OTHER, OTHER, OTHER, WEAK, OTHER, OTHER]),
    torch.tensor([OTHER, STRONG, OTHER, OTHER, OTHER, OTHER]),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_members_are_those_of_the_classes_named():
    assert [c.tolist() for c in members(LAYERS, ["weakening"])] == [
        [True, False, True, False, False, False],
        [False, False, False, True, False, False],
        [False] * 6,
    ]
    assert n_chosen(members(LAYERS, ["weakening", "strengthening"])) == 5
    with pytest.raises(UserError, match=r"no neuron of the class atypical weakening"):
        members(LAYERS, ["atypical weakening"])


def test_some_of_a_class_are_drawn_from_all_layers_alike():
    whole = members(LAYERS, ["weakening"])
    hits = torch.zeros(18)
    for seed in range(300):
        some = drawn(whole, 1, rng(seed))
        assert n_chosen(some) == 1
        hits += torch.cat(some)
    assert (hits[~torch.cat(whole)] == 0).all()
    assert (hits[torch.cat(whole)] > 70).all()  # 100 expected, standard deviation 8
    assert all(map(torch.equal, drawn(whole, 2, rng(4)), drawn(whole, 2, rng(4))))
    with pytest.raises(UserError, match="4 neurons cannot be drawn from the 3"):
        drawn(whole, 4, rng())


def test_controls_have_the_counts_of_each_layer_and_nothing_of_the_class():
    whole = members(LAYERS, ["weakening"])
    some = drawn(whole, 2, rng(1))
    seen = torch.zeros(18, dtype=torch.bool)
    for seed in range(40):
        others = control(some, whole, rng(seed))
        assert [int(c.sum()) for c in others] == [int(c.sum()) for c in some]
        assert not (torch.cat(others) & torch.cat(whole)).any()
        seen |= torch.cat(others)
    reachable = torch.cat(
        [~c & bool(s.any()) for c, s in zip(whole, some, strict=True)]
    )
    assert torch.equal(seen, reachable)


def test_a_control_that_a_layer_cannot_give_is_refused():
    most = members(LAYERS, ["orthogonal output"])
    with pytest.raises(
        UserError, match=r"layer 1 has 1 neurons outside .* the 5 chosen"
    ):
        control([torch.zeros(6, dtype=torch.bool), most[1]], most[:2], rng())


@pytest.mark.parametrize(
    ("n", "fraction", "as_many_as", "expected"),
    [
        (None, None, None, 50),
        (7, None, None, 7),
        (None, 0.25, None, 13),
        (None, 0.001, None, 1),
        (None, None, 9, 9),
    ],
)
def test_the_number_is_given_in_one_of_four_ways(n, fraction, as_many_as, expected):
    assert number_of(50, n, fraction, as_many_as) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_the_mask_ablates_exactly_the_chosen_neurons_of_the_network(kind: str):
    """Cutting by mask is zeroing the columns of w_out of the class's neurons."""
    model = tiny_model(kind, "causal_lm")
    classes = classes_of(checkpoint_of(model, kind), 0.15, "folded")
    assert [len(of_layer) for of_layer in classes] == [D_MLP, D_MLP]
    chosen = members(classes, ["strengthening"] if kind == "gpt2" else ["weakening"])
    sites = sites_of(model, ["neurons"])
    mask = frozen_mask(chosen, sites, zero_values(sites))
    assert 0 < mask.n_ablated == n_chosen(chosen) < mask.n_units
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        uncut = model(ids).logits
        with mask.applied(model):
            cut = model(ids).logits
        for site, of_layer in zip(sites, chosen, strict=True):
            weight = model.get_submodule(site.module).weight
            weight[(of_layer,) if kind == "gpt2" else (slice(None), of_layer)] = 0
        by_hand = model(ids).logits
    assert torch.allclose(cut, by_hand, atol=5e-5)
    assert not torch.allclose(cut, uncut, atol=1e-3)


def shares(*of_layers: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(shares) for shares in of_layers]


def test_controls_by_frequency_are_on_as_often_as_what_they_stand_for():
    """Of ten others three are within .05 of .30, and two within .05 of .80."""
    others = [0.1, 0.27, 0.3, 0.34, 0.5, 0.6, 0.76, 0.84, 0.9, 0.0]
    frequency = shares([0.3, 0.8, *others], [0.5] * 12)
    chosen = [torch.arange(12) < 2, torch.zeros(12, dtype=torch.bool)]
    hits = torch.zeros(12)
    for seed in range(300):
        found = matched_control(chosen, chosen, frequency, 0.05, rng(seed))
        assert [int(c.sum()) for c in found] == [2, 0]
        hits += found[0]
    expected = torch.tensor([0, 0, 0, 100, 100, 100, 0, 0, 150, 150, 0, 0])
    assert (hits - expected).abs().max() < 35  # standard deviations 8 and 9
    assert (hits[expected == 0] == 0).all()
    again = matched_control(chosen, chosen, frequency, 0.05, rng(4))
    same = matched_control(chosen, chosen, frequency, 0.05, rng(4))
    assert torch.equal(again[0], same[0])


def test_an_assignment_is_found_where_a_greedy_choice_would_end_in_none():
    """.50 can take either other neuron, .60 the second one alone."""
    frequency = shares([0.5, 0.6, 0.45, 0.55])
    chosen = [torch.tensor([True, True, False, False])]
    for seed in range(20):
        found = matched_control(chosen, chosen, frequency, 0.051, rng(seed))
        assert found[0].tolist() == [False, False, True, True]
    with pytest.raises(UserError, match=r"layer 0 .* for 1 of the 2 .* 0.01; raise it"):
        matched_control(chosen, chosen, shares([0.5, 0.6, 0.5, 0.5]), 0.01, rng())
    with pytest.raises(UserError, match="for 2 of the 2 chosen"):
        matched_control(chosen, [torch.ones(4) > 0], frequency, 1.0, rng())


def test_neurons_are_taken_by_how_often_they_are_on():
    whole = members(LAYERS, ["weakening"])
    frequency = shares([0.9, 1.0, 0.2, 1.0, 1.0, 1.0], [0.5] * 6, [0.0] * 6)
    most = by_frequency(whole, 2, frequency, most=True)
    assert [c.nonzero().flatten().tolist() for c in most] == [[0], [3], []]
    least = by_frequency(whole, 1, frequency, most=False)
    assert [c.nonzero().flatten().tolist() for c in least] == [[2], [], []]
    with pytest.raises(UserError, match="4 neurons cannot be drawn from the 3"):
        by_frequency(whole, 4, frequency, most=True)
