"""Sets of neurons: all of a class, some of it, and controls matched by layer."""

import pytest
import torch

from circuitcut.masks.ablation import zero_values
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.names import CLASSES
from circuitcut.weight_classes.selection import (
    classes_of,
    control,
    drawn,
    frozen_mask,
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
