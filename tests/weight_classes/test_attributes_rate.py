"""Attributes rates on a planted model whose rates follow from its weights by hand."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuitcut.masks.ablation import zero_values
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.selection import frozen_mask
from circuitcut.weight_classes.tokens.attributes_rate import (
    NamedSubject,
    Vocabulary,
    nearest_words,
    rate,
    rates,
)

TOKENS = ["Paris", " wine", " the", " cheese", "Oslo", " France", "x", "?"]
FRANCE = 5


@pytest.fixture
def model() -> Any:
    """Two blocks of which the second's neuron 0 writes what France is known for.

    Attention writes nothing and neither does block 0. Unembeddings are unit vectors, so
    that a state's entries are its scores. Behind block 0 France is nearest to itself,
    Paris and "the"; behind block 1 to wine and cheese.
    """
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=4,
        num_attention_heads=1,
        num_hidden_layers=2,
        vocab_size=8,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.lm_head.weight.copy_(torch.eye(8))
    model.model.embed_tokens.weight.copy_(torch.eye(8))
    france = torch.tensor([0.8, 0.1, 0.6, 0.2, 0.0, 1.0, -1.0, -1.0])
    model.model.embed_tokens.weight[FRANCE] = france
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.fill_(1.0)
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight[0, FRANCE] = mlp.up_proj.weight[0, FRANCE] = 3.0
    mlp.down_proj.weight[1, 0] = mlp.down_proj.weight[3, 0] = 5.0
    return model


def vocabulary() -> Vocabulary:
    return Vocabulary.of(
        torch.eye(8), TOKENS, lambda word: len(word) > 2 and word != "the"
    )


def france(*before: int) -> NamedSubject:
    words = frozenset({"paris", "wine", "france"})
    return NamedSubject("France", (*before, FRANCE), words)


def attributes_rates(
    model: Any, subjects: list[NamedSubject], of: Vocabulary, **options: int
) -> Any:
    found = nearest_words(model, subjects, of, **options)
    return rates(found, [subject.words for subject in subjects])


def test_the_rates_of_a_planted_model_are_those_by_hand(model: Any):
    """Layer 0: France, Paris, (the): 2 of 2. Layer 1: wine, cheese, France: 2 of 3."""
    found = attributes_rates(model, [france(), france(4, 7)], vocabulary(), n_top=3)
    assert found.tolist() == [[100.0, pytest.approx(200 / 3)]] * 2
    sites = sites_of(model, ["neurons"])
    neuron = [torch.zeros(4, dtype=torch.bool), torch.arange(4) == 0]
    mask = frozen_mask(neuron, sites, zero_values(sites))
    with mask.applied(model):
        cut = attributes_rates(model, [france(4, 7)], vocabulary(), n_top=3)
    assert cut.tolist() == [[100.0, 100.0]]
    two = attributes_rates(model, [france(4)], vocabulary(), n_top=2)
    assert two.tolist() == [[100.0, 50.0]]


def test_batches_and_padding_change_no_rate(model: Any):
    subjects = [france(), france(0, 1, 2), NamedSubject("Oslo", (4,), frozenset())]
    one, all_three = (
        attributes_rates(model, subjects, vocabulary(), n_top=4, batch_size=size)
        for size in (1, 3)
    )
    assert one.tolist() == all_three.tolist()
    assert one[2].tolist() == [0.0, 0.0]


def test_a_rate_leaves_out_what_is_no_word():
    assert rate(["", "paris", "", "oslo"], frozenset({"paris"})) == 50.0
    assert rate(["", ""], frozenset({"paris"})) != rate([""], frozenset())  # NaN


def test_other_widths_and_missing_tokens_are_refused(model: Any):
    narrow = Vocabulary.of(torch.eye(8)[:, :5], TOKENS, lambda _: True)
    with pytest.raises(UserError, match="got 5 for 8"):
        attributes_rates(model, [france()], narrow, n_top=2)
    with pytest.raises(UserError, match="must name the 8 tokens"):
        Vocabulary.of(torch.eye(8), TOKENS[:3], lambda _: True)
