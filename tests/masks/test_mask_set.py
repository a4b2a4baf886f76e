"""MaskSet: one vector over all sites, superset masks, averaged scores."""

import pytest
import torch

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES, GateSettings
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

SITES = (
    Site("heads", "a", 0, 4, 8),
    Site("neurons", "b", 0, 10),
    Site("neurons", "c", 1, 6),
)
SETTINGS = GateSettings(k_min=1.0, k_max=3.0, keep_prob=0.8)


def _superset() -> FrozenMask:
    return FrozenMask.random(SITES, zero_values(SITES), n_ablated=7, seed=0)


@pytest.mark.parametrize("gate", sorted(GATES))
def test_the_expected_counts_are_the_means_of_the_sampled_ones(gate: str):
    masks = MaskSet(SITES, gate, SETTINGS)
    assert masks.n_units == 20
    total = masks.expected_ablated() + masks.expected_kept()
    assert total.item() == pytest.approx(20.0)
    if gate == "hard_concrete":
        rng = torch.Generator().manual_seed(0)
        draws = [torch.cat(list(masks.sample(rng).values())) for _ in range(400)]
        n_ablated = (torch.stack(draws) == 0).sum(1).float()
        error = n_ablated.std() / 400**0.5
        assert abs(n_ablated.mean() - masks.expected_ablated()) < 5 * error


@pytest.mark.parametrize("gate", sorted(GATES))
def test_a_sample_is_one_vector_split_by_site_in_order(gate: str):
    masks = MaskSet(SITES, gate, SETTINGS)
    split = masks.split(torch.arange(20.0))
    assert {name: piece.tolist() for name, piece in split.items()} == {
        "a:heads": list(range(4)),
        "b:neurons": list(range(4, 14)),
        "c:neurons": list(range(14, 20)),
    }
    sample = masks.sample(torch.Generator().manual_seed(0))
    whole = masks.gate.sample(torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(list(sample.values())), whole)


@pytest.mark.parametrize("gate", sorted(GATES))
def test_units_outside_a_superset_mask_are_held_at_one_and_get_no_gradient(gate: str):
    superset = _superset()
    masks = MaskSet(SITES, gate, SETTINGS, trainable=superset)
    assert masks.gate.n_units == 7
    sample = masks.sample(torch.Generator().manual_seed(0))
    held = {name: gates[superset.keep[name]] for name, gates in sample.items()}
    assert all((gates == 1.0).all() for gates in held.values())
    outside = sum(gates.sum() for gates in held.values())
    (gradient,) = torch.autograd.grad(
        outside, list(masks.gate.parameters()), allow_unused=True
    )
    assert gradient is None or (gradient == 0).all()
    assert masks.expected_kept().item() >= 13.0
    ranking = masks.split(masks.ranking())
    for name, kept in superset.keep.items():
        assert (ranking[name].isinf() == kept).all()


def test_averaged_scores_are_the_exponential_moving_average_written_out():
    masks = MaskSet(SITES, "topk", SETTINGS)
    seen = [
        torch.randn(20, generator=torch.Generator().manual_seed(i)) for i in range(5)
    ]
    assert torch.equal(masks.ranking(), torch.zeros(20))
    for scores in seen:
        with torch.no_grad():
            masks.gate.score.copy_(scores)
        masks.average_(0.9)
    expected = seen[0]
    for scores in seen[1:]:
        expected = 0.9 * expected + 0.1 * scores
    torch.testing.assert_close(masks.ranking(), expected)
    assert masks.n_averaged.item() == 5
    assert not masks.ranking().requires_grad


def test_a_saved_state_gives_back_gates_and_averages():
    masks, other = (
        MaskSet(SITES, "topk", SETTINGS, trainable=_superset()) for _ in "ab"
    )
    with torch.no_grad():
        masks.gate.score.copy_(torch.arange(7.0))
    masks.average_(0.9)
    other.load_state_dict(masks.state_dict())
    assert torch.equal(other.ranking(), masks.ranking())


def test_impossible_mask_sets_are_refused():
    with pytest.raises(
        UserError, match=r"one of \['clamped', 'hard_concrete', 'topk'\]"
    ):
        MaskSet(SITES, "hard", SETTINGS)
    with pytest.raises(UserError, match="each once"):
        MaskSet((SITES[0], SITES[0]), "topk", SETTINGS)
    with pytest.raises(UserError, match="at least one site"):
        MaskSet((), "topk", SETTINGS)
    with pytest.raises(UserError, match="mask of the same sites"):
        MaskSet(SITES[:2], "clamped", SETTINGS, trainable=_superset())
    nothing = FrozenMask.random(SITES, zero_values(SITES), n_ablated=0, seed=0)
    with pytest.raises(UserError, match="ablate at least one unit"):
        MaskSet(SITES, "clamped", SETTINGS, trainable=nothing)


@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
def test_scores_start_in_the_order_of_a_ranking(gate: str):
    sites = [Site("neurons", "a", 0, 5), Site("heads", "b", 0, 3, 2)]
    masks = MaskSet(sites, gate, GateSettings(k_min=1.0, k_max=4.0))
    before = masks.gate.scores().detach().clone()
    ranking = {"a:neurons": torch.tensor([5.0, 1.0, 9.0, 1.0, 0.0])}
    ranking["b:heads"] = torch.tensor([7.0, -1.0, 2.0])
    masks.start_from(ranking)
    moved = (masks.gate.scores().detach() - before).argsort().tolist()
    assert moved == [6, 4, 1, 3, 7, 0, 5, 2]


def test_clamped_gates_have_no_room_for_a_ranking():
    masks = MaskSet([Site("neurons", "a", 0, 5)], "clamped", GateSettings())
    with pytest.raises(UserError, match="clamped cannot start"):
        masks.start_from({"a:neurons": torch.zeros(5)})
