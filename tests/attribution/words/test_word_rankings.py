"""Every ranking puts a planted unit first; probeless is its formula."""

from itertools import combinations

import numpy as np
import pytest
import torch

from circuitcut.attribution.words.moments import Moments
from circuitcut.attribution.words.names import RANKINGS
from circuitcut.attribution.words.registry import WORD_RANKINGS, Ranked
from circuitcut.attribution.words.states import Words, WordSource
from circuitcut.storage.errors import UserError
from tests.attribution.test_methods import PLANTED, planted_model
from tests.attribution.toy import SITES, SPECIAL_IDS, LinearTokens, ToyTask

INFORMED = [name for name in WORD_RANKINGS if name != "random"]


class Corpus(ToyTask):
    """Eight batches of sixteen texts."""

    def evaluation_batches(self, split, *, size):
        for number in range(8):
            yield self.rows(16 * number, 16)

    def n_examples(self, split):
        return 128


def ranked(model: torch.nn.Module | None = None, *, seed: int = 0) -> Ranked:
    network = model or planted_model()
    source = WordSource(Corpus(), "mask", SPECIAL_IDS)
    return Ranked(source, network, (SITES["hidden"],), seed)


def test_the_names_are_those_of_the_registry_and_the_learned_mask():
    assert {*WORD_RANKINGS, "learned"} == set(RANKINGS)


@pytest.mark.parametrize("name", INFORMED)
def test_the_planted_unit_is_the_first_of_a_descending_order(name: str):
    scores = WORD_RANKINGS[name](ranked())
    assert scores.shape == (6,)
    assert scores.dtype == torch.float64
    order = scores.argsort(descending=True)
    assert order[0] == PLANTED
    assert (scores[order][:-1] >= scores[order][1:]).all()


@pytest.mark.parametrize("name", INFORMED)
def test_a_constant_unit_has_the_score_zero(name: str):
    model = planted_model()
    with torch.no_grad():
        model.first.weight[2] = 0.0
        model.second.weight[:, 2] = 0.0
    assert WORD_RANKINGS[name](ranked(model))[2] == 0.0


def test_random_orders_cover_all_units_and_differ_by_seed():
    orders = [
        WORD_RANKINGS["random"](ranked(seed=seed)).argsort().tolist()
        for seed in range(5)
    ]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] == WORD_RANKINGS["random"](ranked(seed=0)).argsort().tolist()


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, labels, and which labels are the concept, of 300 words."""
    rng = np.random.default_rng(seed)
    labels = torch.tensor(rng.choice([0, 1, 3], size=300))
    states = torch.tensor(rng.normal(size=(300, 7))) + labels[:, None]
    return states.float(), labels, labels == 3


def batches(states, labels, concept, sizes):
    for s, y, c in zip(
        states.split(sizes), labels.split(sizes), concept.split(sizes), strict=True
    ):
        yield Words(y, c, y, y, y), s


def test_moments_are_those_of_all_words_whatever_the_batches():
    states, labels, concept = drawn()
    one = Moments.over(batches(states, labels, concept, [300]))
    many = Moments.over(batches(states, labels, concept, [1, 99, 0, 200]))
    for moments in (one, many):
        exact = states.double()
        assert torch.allclose(moments.mean, exact.mean(0))
        assert torch.allclose(moments.std, exact.std(0, correction=0))
        means = {z: exact[labels == z].mean(0) for z in (0, 1, 3)}
        rest = exact[~concept].mean(0)
        assert torch.allclose(moments.probeless(), (means[3] - rest).abs())
        pairs = [(means[a] - means[b]).abs() for a, b in combinations(means, 2)]
        assert torch.allclose(moments.probeless_labels(), torch.stack(pairs).sum(0))
        within = sum(
            ((exact[side] - exact[side].mean(0)) ** 2).sum(0)
            for side in (concept, ~concept)
        )
        effect = (means[3] - rest).abs() / (within / 300).sqrt()
        assert torch.allclose(moments.effect(), effect)


def test_with_two_labels_both_probeless_rankings_are_the_same():
    states, labels, concept = drawn()
    two = torch.where(labels == 3, 1, 0)
    moments = Moments.over(batches(states, two, concept, [100, 200]))
    assert torch.allclose(moments.probeless(), moments.probeless_labels())


def test_an_effect_does_not_depend_on_the_scale_and_is_zero_for_a_constant():
    states, labels, concept = drawn()
    states[:, 1] = 1e4 * states[:, 0]
    states[:, 2] = 3.25e4
    moments = Moments.over(batches(states, labels, concept, [300]))
    assert moments.effect()[1] == pytest.approx(float(moments.effect()[0]), rel=1e-6)
    assert (moments.effect()[2], moments.std[2]) == (0.0, 0.0)


@pytest.mark.parametrize("concept", [True, False])
def test_words_of_one_side_alone_are_refused(concept: bool):
    states, labels, _ = drawn()
    side = torch.full((300,), concept)
    with pytest.raises(UserError, match="words of the concept and other words"):
        Moments.over(batches(states, labels, side, [300]))


def test_a_linear_model_is_as_wide_as_its_site():
    assert WORD_RANKINGS["probeless"](ranked(LinearTokens())).shape == (6,)
