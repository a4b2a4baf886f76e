"""Contracts of every ranking, and the answers known for some of them."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.registry import METHODS, able
from circuitcut.attribution.subject import Scores
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.attribution.toy import (
    SITES,
    SPECIAL_IDS,
    LinearTokens,
    ToyTask,
    ablation,
)

PLANTED = 4
ANYWHERE = able(["neurons"])
INFORMED = sorted(set(ANYWHERE) - {"random"})


def planted_model() -> LinearTokens:
    """Unit 4 alone is on at concept tokens and alone is read; the others are noise."""
    model = LinearTokens(relu=True)
    with torch.no_grad():
        model.embedding.weight[:, 0] = -1.0
        model.embedding.weight[5:, 0] = 1.0
        model.first.weight[PLANTED] = torch.tensor([1.0, 0.0, 0.0, 0.0])
        model.first.bias[PLANTED] = 0.0
        model.second.weight *= 0.05
        model.second.weight[:, PLANTED] = torch.tensor([2.0, -2.0])
    return model


@pytest.mark.parametrize("ablation_kind", ["zero", "mean"])
@pytest.mark.parametrize("method", INFORMED)
def test_the_planted_unit_ranks_first(method: str, ablation_kind: str):
    task, model = ToyTask(), planted_model()
    for kind in ("neurons", "hidden"):
        site = SITES[kind]
        ablated = ablation(ablation_kind, task, model, [site])
        scores = METHODS[method](task, model, [site], ablated, n_batches=3, size=16)
        assert scores[site.name].argmax() == PLANTED
    heads, weights = SITES["heads"], SITES["weights"]
    ablated = ablation(ablation_kind, task, model, [heads, weights])
    scores = METHODS[method](task, model, [heads], ablated, n_batches=3, size=16)
    assert scores[heads.name].argmax() == PLANTED // heads.unit_size
    scores = METHODS[method](task, model, [weights], ablated, n_batches=3, size=16)
    if method != "probeless":  # which does not see what is read
        assert scores[weights.name].argmax() == PLANTED * 4


@pytest.mark.parametrize("ablation_kind", ["zero", "mean"])
def test_greedy_orders_a_linear_model_as_one_shot_does(ablation_kind: str):
    task, model = ToyTask(), LinearTokens(width=40)
    site = Site("neurons", "second", 0, 40)
    ablated = ablation(ablation_kind, task, model, [site])
    greedy, one_shot = (
        METHODS[name](task, model, [site], ablated, n_batches=2, size=8)[site.name]
        for name in ("greedy_margin", "gradient_margin")
    )
    assert greedy.argsort(descending=True).equal(one_shot.argsort(descending=True))
    assert greedy.sort().values.tolist() == list(range(1, 41))


def test_greedy_sees_a_second_unit_that_only_backs_up_the_first():
    """Class 0's logit is a maximum: all but the leading unit have no slope at all."""

    class Maximum(LinearTokens):
        def forward(self, input_ids):
            x = self.second(self.first(self.embedding(input_ids)))
            return type("Output", (), {"logits": x})()

    class Largest(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.max(-1).values, torch.zeros_like(x[..., 0])], -1)

    task, model = ToyTask(), Maximum(width=80)
    site = Site("neurons", "second", 0, 80)
    model.second = Largest()
    model.first.weight.zero_()
    model.first.bias.copy_(torch.linspace(8.0, 0.1, 80))
    ablated = zero_values([site])
    settings = {"n_batches": 1, "size": 4}
    one_shot = METHODS["gradient_margin"](task, model, [site], ablated, **settings)
    greedy = METHODS["greedy_margin"](task, model, [site], ablated, **settings)
    assert one_shot[site.name].nonzero().tolist() == [[0]]
    assert greedy[site.name][0] == 80
    # chunks of four, four and four: the leader of what is left opens each
    assert greedy[site.name][[4, 8]].tolist() == [76, 72]


@pytest.mark.parametrize("method", ANYWHERE)
def test_scores_do_not_depend_on_how_examples_are_batched(method: str):
    task, model = ToyTask(3), LinearTokens(3, relu=True)
    sites = [SITES["neurons"], SITES["weights"]]
    ablated = ablation("mean", task, model, sites)

    def scores(n_batches: int, size: int) -> Scores:
        return METHODS[method](
            task, model, sites, ablated, n_batches=n_batches, size=size
        )

    drawn = method == "gradient_margin_over_retain"  # draws answers batch by batch
    n_batches = 8 if drawn else 1
    small, large = scores(2 * n_batches, 8), scores(n_batches, 16)
    for name, value in small.items():
        tolerance = (
            {"rtol": 0.15, "atol": 1e-3} if drawn else {"rtol": 1e-4, "atol": 1e-6}
        )
        torch.testing.assert_close(value, large[name], **tolerance)


@pytest.mark.parametrize("method", ANYWHERE)
def test_scores_are_numbers_for_every_unit_and_leave_the_model_as_it_was(method: str):
    task, model = ToyTask(3), LinearTokens(3, relu=True)
    sites = list(SITES.values())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ("mean", "counterfactual"):
        ablated = ablation(kind, task, model, sites)
        model.train()
        model.act.eval()
        settings = {"n_batches": 1, "size": 4, "special_ids": SPECIAL_IDS, "seed": 3}
        scores = METHODS[method](task, model, sites, ablated, **settings)
        again = METHODS[method](task, model, sites, ablated, **settings)
        assert list(scores) == [site.name for site in sites]
        for site in sites:
            assert scores[site.name].shape == (site.n_units,)
            assert scores[site.name].dtype == torch.float64
            assert scores[site.name].isfinite().all()
            assert torch.equal(scores[site.name], again[site.name])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (model.training, model.act.training, model.first.training) == (1, 0, 1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_trainable_model_gets_no_gradient_from_being_looked_at():
    task, model = ToyTask(), LinearTokens().requires_grad_(True)
    sites = list(SITES.values())
    for method in map(METHODS.get, ANYWHERE):
        method(task, model, sites, zero_values(sites), n_batches=1, size=4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_scores_differ_by_seed_and_cover_every_layer_alike():
    sites = [Site("neurons", f"layer.{i}", i, 4000) for i in range(5)]
    nothing = AblationValues("zero", {})
    first, second, again = (
        METHODS["random"](ToyTask(), LinearTokens(), sites, nothing, seed=seed)
        for seed in (0, 1, 0)
    )
    joined = torch.cat(list(first.values()))
    assert not torch.equal(joined, torch.cat(list(second.values())))
    assert torch.equal(joined, torch.cat(list(again.values())))
    top = joined.sort(descending=True).indices[:2000] // 4000
    shares = top.bincount(minlength=5) / 2000
    # five standard errors of a share of a fifth
    assert (shares - 0.2).abs().max() < 5 * (0.2 * 0.8 / 2000) ** 0.5


def test_probeless_is_the_difference_of_means_counted_by_hand():
    task, model = ToyTask(), LinearTokens()
    sites = [SITES["neurons"], SITES["heads"], SITES["weights"]]
    scores = METHODS["probeless"](
        task, model, sites, zero_values(sites), n_batches=3, size=4
    )
    rows = task.rows(0, 12)
    inputs = model.embedding(rows["input_ids"])
    x = model.first(inputs)
    x = x + x.mean(1, keepdim=True)
    difference, input_difference = (
        values[rows["concept"]].mean(0) - values[rows["retain"]].mean(0)
        for values in (x, inputs)
    )
    by_hand = {
        "second:neurons": difference.abs(),
        "second:heads": difference.view(3, 2).square().sum(1).sqrt(),
        "first:weights": (model.first.weight * input_difference).abs().flatten(),
    }
    for name, expected in by_hand.items():
        torch.testing.assert_close(scores[name], expected)


def test_probeless_runs_the_model_once_a_batch_for_both_sides():
    task, model, sites = ToyTask(), LinearTokens(), [SITES["neurons"]]
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    METHODS["probeless"](task, model, sites, zero_values(sites), n_batches=3, size=4)
    assert len(passes) == 3


def test_probeless_weights_of_a_transposed_module_are_in_the_order_as_stored():
    task, model = ToyTask(), LinearTokens()
    settings = {"n_batches": 2, "size": 4}
    site, nothing = SITES["weights"], zero_values([SITES["weights"]])
    plain = METHODS["probeless"](task, model, [site], nothing, **settings)[site.name]
    transposed = Conv1D(6, 4).double()
    with torch.no_grad():
        transposed.weight.copy_(model.first.weight.T)
        transposed.bias.copy_(model.first.bias)
    model.first = transposed
    stored = METHODS["probeless"](task, model, [site], nothing, **settings)[site.name]
    torch.testing.assert_close(stored.view(4, 6), plain.view(6, 4).T)


def test_probeless_needs_both_sides():
    task, sites = ToyTask(), [SITES["neurons"]]
    task.first_concept = 99
    with pytest.raises(UserError, match="at least one marked position"):
        METHODS["probeless"](task, LinearTokens(), sites, zero_values(sites))
