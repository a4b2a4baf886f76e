"""Objectives: closed forms, library oracles, limits, gradients, empty sets."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from circuitcut.storage.errors import UserError
from circuitcut.training.objectives import (
    CONCEPT_OBJECTIVES,
    RETAIN_OBJECTIVES,
    ObjectiveSettings,
    bounded_ascent,
    cross_entropy,
    jensen_shannon,
    kl_to_reference,
    margin,
    margin_hinge,
    uniform_target,
)

ALL = {**CONCEPT_OBJECTIVES, **{f"retain {k}": v for k, v in RETAIN_OBJECTIVES.items()}}
SEEDS = st.integers(0, 2**16)


def _logits(seed: int, n: int = 5, classes: int = 7) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=rng, dtype=torch.float64)


def _classes(seed: int, n: int = 5, classes: int = 7) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed + 1)
    return torch.stack([torch.randperm(classes, generator=rng) for _ in range(n)])


def _answers(n: int = 4, classes: int = 6) -> SimpleNamespace:
    picked = _classes(0, n, classes)
    return SimpleNamespace(
        logits=_logits(0, n, classes).float().requires_grad_(),
        targets=picked[:, 0],
        concept_classes=picked[:, :2],
        rivals=None,
        weights=torch.ones(n),
    )


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_the_margin_is_the_log_odds_of_the_answer(seed: int):
    logits, concept = _logits(seed), _classes(seed)[:, :2]
    p = logits.softmax(1).gather(1, concept).sum(1)
    torch.testing.assert_close(margin(logits, concept, None), p.log() - (1 - p).log())


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_with_rivals_the_margin_is_the_log_odds_among_them(seed: int):
    logits, order = _logits(seed), _classes(seed)
    concept, rivals = order[:, :2], order[:, 2:5]
    p = logits.softmax(1)
    odds = p.gather(1, concept).sum(1) / p.gather(1, rivals).sum(1)
    torch.testing.assert_close(margin(logits, concept, rivals), odds.log())
    everyone = margin(logits, concept, order[:, 2:])
    torch.testing.assert_close(everyone, margin(logits, concept, None))


def test_one_class_against_one_rival_is_the_logit_difference():
    logits = torch.tensor([[1.0, 4.0, 9.0]])
    difference = margin(logits, torch.tensor([[2]]), torch.tensor([[0]]))
    assert difference.tolist() == [8.0]


def test_the_hinge_is_zero_once_the_answer_is_floor_nats_behind():
    logits = torch.tensor([[0.0, 0.0], [-3.0, 0.0], [2.0, 0.0]], requires_grad=True)
    concept, weights = torch.zeros(3, 1, dtype=torch.long), torch.ones(3)
    loss = margin_hinge(logits, concept, None, weights, floor=1.0)
    assert loss.item() == pytest.approx((1 + 0 + 3) / 3)
    loss.backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[[0, 2], 0] > 0).all()


def test_the_cap_holds_for_each_token_and_not_for_the_mean():
    logits = torch.tensor([[0.0, 0.0], [-10.0, 0.0]], requires_grad=True)
    targets, weights = torch.zeros(2, dtype=torch.long), torch.ones(2)
    loss = bounded_ascent(logits, targets, weights, 2.0)
    assert loss.item() == pytest.approx(-(math.log(2) + 2.0) / 2)
    loss.backward()
    assert (logits.grad[1] == 0).all()  # beyond the cap nothing is gained
    assert logits.grad[0, 0] > 0  # descent lowers the right logit


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_the_uniform_target_is_the_divergence_from_uniform(seed: int):
    logits, order, weights = _logits(seed), _classes(seed), torch.ones(5)
    chosen = logits.gather(1, order[:, :4])
    uniform = Categorical(torch.full_like(chosen, 0.25))
    expected = kl_divergence(uniform, Categorical(logits=chosen)).mean()
    value = uniform_target(logits, order[:, :1], order[:, 1:4], weights)
    torch.testing.assert_close(value, expected)
    assert value > 0


def test_equal_logits_are_the_minimum_of_the_uniform_target():
    logits = torch.zeros(2, 5, dtype=torch.float64)
    logits[:, 3:] = torch.tensor([7.0, -2.0])  # outside the rivals: without effect
    logits.requires_grad_()
    concept, rivals = torch.tensor([[0], [1]]), torch.tensor([[1, 2], [0, 2]])
    value = uniform_target(logits, concept, rivals, torch.ones(2).double())
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    value.backward()
    assert logits.grad.abs().max() < 1e-12


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_the_divergence_from_the_reference_is_that_of_torch(seed: int):
    logits, reference = _logits(seed), _logits(seed + 7)
    expected = kl_divergence(Categorical(logits=reference), Categorical(logits=logits))
    value = kl_to_reference(logits, reference, torch.ones(5))
    torch.testing.assert_close(value, expected.mean())


def test_identical_logits_have_no_divergence_and_the_reference_no_gradient():
    logits = _logits(3).requires_grad_()
    reference = _logits(3).requires_grad_()
    value = kl_to_reference(logits, reference + 5.0, torch.ones(5))  # shift-invariant
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    value.backward()
    assert logits.grad.abs().max() < 1e-12
    assert reference.grad is None


def test_cross_entropy_is_that_of_torch():
    logits, targets = _logits(1), _classes(1)[:, 0]
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(logits, targets, torch.ones(5)), expected)


@pytest.mark.parametrize("name", ALL)
def test_a_weight_of_two_counts_a_position_twice(name: str):
    once = _answers()
    reference = _logits(9, 4, 6).float()
    twice = SimpleNamespace(
        **{
            key: None if value is None else torch.cat([value, value[:1]])
            for key, value in vars(once).items()
        }
    )
    once.weights = torch.tensor([2.0, 1.0, 1.0, 1.0])
    own = ObjectiveSettings()
    torch.testing.assert_close(
        ALL[name](once, reference, own),
        ALL[name](twice, torch.cat([reference, reference[:1]]), own),
    )


@pytest.mark.parametrize("name", ALL)
def test_no_positions_give_a_zero_with_a_gradient(name: str):
    answers = _answers(n=1)
    whole = answers.logits
    none = SimpleNamespace(
        **{
            key: None if value is None else value[:0]
            for key, value in vars(answers).items()
        }
    )
    value = ALL[name](none, whole.detach()[:0], ObjectiveSettings())
    assert value.item() == 0.0
    value.backward()
    assert torch.equal(whole.grad, torch.zeros_like(whole))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_for_confident_logits_too(name: str, scale: float):
    answers = _answers()
    logits = (answers.logits * scale).detach().requires_grad_()
    answers.logits = logits
    ALL[name](answers, -logits.detach(), ObjectiveSettings()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["margin", "ascent", "uniform"])
def test_descending_a_removal_objective_lowers_the_answer(name: str):
    answers = _answers()
    answers.concept_classes = answers.targets[:, None]
    with torch.no_grad():
        answers.logits.fill_(0.0)
        answers.logits[torch.arange(4), answers.targets] = 1.0
    CONCEPT_OBJECTIVES[name](answers, None, ObjectiveSettings()).backward()
    assert (answers.logits.grad.gather(1, answers.concept_classes) > 0).all()


@given(seed=SEEDS)
def test_jensen_shannon_is_the_mean_kl_to_the_middle_and_bounded(seed: int):
    ours, theirs = _logits(seed), _logits(seed + 7)
    p, r = Categorical(logits=ours), Categorical(logits=theirs)
    middle = Categorical(probs=(p.probs + r.probs) / 2)
    expected = (kl_divergence(p, middle) + kl_divergence(r, middle)) / 2
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    torch.testing.assert_close(
        jensen_shannon(ours, theirs, weights),
        (expected * weights).sum() / weights.sum(),
    )
    apart = jensen_shannon(1e3 * ours, -1e3 * ours, weights)
    assert apart.item() == pytest.approx(math.log(2))
    assert jensen_shannon(ours, ours, weights).item() == pytest.approx(0.0, abs=1e-12)


def test_missing_references_and_missing_rivals_are_told():
    answers = _answers()
    with pytest.raises(UserError, match="needs the uncut model's logits"):
        RETAIN_OBJECTIVES["kl"](answers, None, ObjectiveSettings())
    with pytest.raises(UserError, match="'js' needs the uncut model's logits"):
        CONCEPT_OBJECTIVES["js"](answers, None, ObjectiveSettings())
    every = torch.arange(6).repeat(4, 1)
    with pytest.raises(UserError, match="got 6 of 6 classes"):
        margin(answers.logits, every, None)
