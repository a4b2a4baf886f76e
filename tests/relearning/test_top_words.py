"""Top words: planted units are named by their words, held ones by none."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.relearning.top_words import (
    Activations,
    activations,
    top_tokens,
    top_units_of_kinds,
    top_words,
)
from circuitcut.tasks.base import Batch
from tests.relearning.conftest import BlobTask

WORDS = ["[PAD]", "Paris", "London", "eats", "the", "once"]
NEURONS = Site("neurons", "out", 0, 4)
HEADS = Site("heads", "mixed", 1, 2, 2)


class Planted(nn.Module):
    """Neuron 1 reads `Paris` and `London`, neuron 2 `eats`; head 1 `the`."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(len(WORDS), 4)
        table[1, 1], table[2, 1], table[3, 2] = 3.0, 2.0, 1.0
        self.embedding = nn.Embedding.from_pretrained(table)
        heads = torch.zeros(len(WORDS), 4)
        heads[4] = torch.tensor([0.0, 0.0, 3.0, 4.0])
        self.heads = nn.Embedding.from_pretrained(heads)
        self.out = nn.Linear(4, 1)
        self.mixed = nn.Linear(4, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        del attention_mask
        neurons, heads = self.embedding(input_ids), self.heads(input_ids)
        return SimpleNamespace(logits=self.out(neurons) + self.mixed(heads))


class Sentences(BlobTask):
    """Two sentences, padded; the last word of the second occurs once."""

    def evaluation_batches(self, split: str, *, size: int) -> Iterator[Batch]:
        del split, size
        ids = torch.tensor([[1, 3, 4, 2, 4], [2, 3, 1, 5, 0]])
        yield {"input_ids": ids, "attention_mask": (ids > 0).long(), "real": ids > 0}


TOKENIZER: Any = SimpleNamespace(
    decode=lambda ids: WORDS[ids[0]], convert_ids_to_tokens=lambda token: WORDS[token]
)


@pytest.fixture
def mask() -> FrozenMask:
    keep = {NEURONS.name: torch.tensor([True, False, True, True])}
    keep[HEADS.name] = torch.ones(2, dtype=torch.bool)
    sites = (NEURONS, HEADS)
    return FrozenMask(keep, sites, zero_values(sites))


def _scores(first: int) -> dict[str, Tensor]:
    neurons = torch.zeros(4)
    neurons[first] = 1.0
    return {NEURONS.name: neurons, HEADS.name: torch.tensor([0.0, 1.0])}


def test_mean_activations_and_order_are_those_worked_out_by_hand():
    ids = torch.tensor([7, 7, 8, 8, 9, 9, 5])
    values = torch.tensor([[4.0], [6.0], [0.0], [2.0], [1.0], [1.0], [9.0]])
    mean = values.mean().item()  # 23/7; |v - mean| sorts 7 against 8 and 9
    distances = {7: (4 - mean + 6 - mean) / 2, 8: (mean + mean - 2) / 2, 9: mean - 1}
    expected = sorted(distances, key=lambda token: -distances[token])
    found = top_tokens(Activations(ids, values), 0, 5, signed=False)
    assert [token for token, _ in found] == expected
    assert dict(found) == {7: 5.0, 8: 1.0, 9: 1.0}  # 5 occurs once


def test_a_sign_that_means_something_orders_by_the_mean_activation():
    ids = torch.tensor([7, 7, 8, 8, 9, 9])
    values = torch.tensor([[1.0], [1.0], [2.0], [4.0], [-90.0], [-90.0]])
    found = Activations(ids, values)
    assert top_tokens(found, 0, 2) == [(8, 3.0), (7, 1.0)]
    assert top_tokens(found, 0, 1, signed=False) == [(9, -90.0)]


def test_a_constant_unit_has_no_words():
    assert top_tokens(Activations(torch.arange(4) % 2, torch.ones(4, 1)), 0, 3) == []


def test_padding_is_left_out_and_heads_are_norms():
    units = top_units_of_kinds(_scores(1), (NEURONS, HEADS), 1)
    assert [(unit.site.kind, unit.index) for unit in units] == [
        ("neurons", 1),
        ("heads", 1),
    ]
    found = activations(Sentences(), Planted(), units)
    assert found.ids.tolist() == [1, 3, 4, 2, 4, 2, 3, 1, 5]
    assert found.values[:, 0].tolist() == [3, 0, 0, 2, 0, 2, 0, 3, 0]
    assert found.values[:, 1].tolist() == [0, 0, 5, 0, 5, 0, 0, 0, 0]


def test_short_texts_run_without_the_padding_of_a_long_one():
    lengths = torch.tensor([400, 2, 3])
    real = torch.arange(400) < lengths[:, None]
    ids = (torch.arange(400) % 5 + 1) * real

    class Uneven(Sentences):
        def evaluation_batches(self, split: str, *, size: int) -> Iterator[Batch]:
            yield {"input_ids": ids, "attention_mask": real.long(), "real": real}

    model, shapes = Planted(), []
    model.register_forward_hook(
        lambda _, __, kwargs, ___: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    units = top_units_of_kinds(_scores(1), (NEURONS, HEADS), 1)
    found = activations(Uneven(), model, units)
    assert shapes == [(1, 400), (2, 3)]
    assert found.ids.tolist() == ids[real].tolist()
    expected = model.embedding(ids[real])[:, 1]
    torch.testing.assert_close(found.values[:, 0], expected)


def test_planted_units_are_named_and_a_held_one_is_silent(mask: FrozenMask):
    model = Planted().train()
    with mask.applied(model):
        found = top_words(
            Sentences(),
            TOKENIZER,
            {"after": model},
            {"before": _scores(1), "after": _scores(2)},
            mask,
            n_units=1,
            n_words=1,
        )
    whole = top_words(
        Sentences(), TOKENIZER, {"before": model}, {"b": _scores(1)}, mask, n_units=1
    )
    assert model.training
    words = {(e["top"], e["kind"], e["unit"]): e["words"]["after"] for e in found}
    assert words["before", "neurons", 1] == []
    assert words["after", "neurons", 2] == [{"word": "eats", "activation": 1.0}]
    assert words["after", "heads", 1] == [{"word": "the", "activation": 5.0}]
    assert [e["ablated"] for e in found] == [True, False, False, False]
    assert [w["word"] for w in whole[0]["words"]["before"]][:1] == ["Paris"]


def test_single_weights_are_left_out():
    site = Site("weights", "out", 0, 4)
    assert top_units_of_kinds({site.name: torch.arange(4.0)}, (site,), 2) == []
