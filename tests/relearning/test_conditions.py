"""Conditions: every combination once, the masks they start from, what they train."""

import pytest
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.mlp import Mlp
from circuitcut.relearning.conditions import (
    CONDITIONS,
    Condition,
    conditions,
)
from circuitcut.relearning.trained import trained_parameters
from circuitcut.storage.errors import UserError


def test_every_combination_comes_once_and_uncut_has_no_holding():
    chosen = conditions(("cut", "uncut"), ("lasting", "one_shot"), (0, 1), (4, None))
    keys = [condition.key for condition in chosen]
    assert len(keys) == len(set(keys)) == 12
    assert "cut-lasting-4-seed1" in keys
    assert "uncut-all-seed0" in keys
    assert all(c.holding is None for c in chosen if c.name == "uncut")


def test_controls_are_combined_only_where_they_differ():
    names = ("cut", "retain_only", "never_learned")
    chosen = conditions(names, ("lasting", "one_shot"), (0,), (4, None))
    keys = [c.key for c in chosen if c.name != "cut"]
    assert sorted(keys) == [
        "never_learned-4-seed0",
        "never_learned-all-seed0",
        "retain_only-lasting-0-seed0",
        "retain_only-one_shot-0-seed0",
    ]
    assert {c.name: c.start for c in chosen} == {
        "cut": "cut",
        "retain_only": "cut",
        "never_learned": "never_learned",
    }


def test_a_random_cut_has_the_counts_of_the_mask_and_its_own_seed(mask: FrozenMask):
    cut, first, second = (
        Condition(name, "lasting", seed).mask(mask)
        for name, seed in (("cut", 0), ("random", 0), ("random", 1))
    )
    assert cut is mask
    assert first is not None
    assert second is not None
    assert first.n_ablated_at == second.n_ablated_at == mask.n_ablated_at
    assert first.overlap(second) < 1
    assert Condition("uncut", None, 0).mask(mask) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "cutt"}, "conditions must be from .*'cutt'"),
        ({"holding": "forever"}, "holding must be one of"),
        ({"limit": 0}, "limits must be positive"),
        ({"name": "retain_only"}, "limit must be 0 in retain_only"),
    ],
)
def test_wrong_conditions_are_refused(given: dict, message: str):
    fields = {"name": "cut", "holding": "lasting", "seed": 0, "limit": 4} | given
    with pytest.raises(UserError, match=message):
        Condition(**fields)


def test_empty_lists_are_refused():
    with pytest.raises(UserError, match="seeds must not be empty"):
        conditions(CONDITIONS, ("lasting",), (), (None,))


def _bert() -> BertForTokenClassification:
    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=10,
    )
    return BertForTokenClassification(config)


@pytest.mark.parametrize(
    ("trained", "some", "none"),
    [
        ("head", "classifier.weight", "encoder"),
        ("mlp", "bert.encoder.layer.2.output.dense.weight", "attention"),
        ("mlp", "bert.encoder.layer.0.intermediate.dense.bias", "classifier"),
        ("attention", "bert.encoder.layer.1.attention.self.query.weight", "intermed"),
        ("layers:1-2", "bert.encoder.layer.1.output.dense.weight", "layer.0."),
        ("layers:0", "bert.encoder.layer.0.output.dense.weight", "layer.1."),
        (r"LayerNorm", "bert.embeddings.LayerNorm.weight", "dense"),
    ],
)
def test_parts_of_an_encoder_by_name(trained: str, some: str, none: str):
    chosen = trained_parameters(_bert(), trained)
    assert some in chosen
    assert not any(none in name for name in chosen)


def test_all_is_every_parameter_and_mlp_and_attention_share_none():
    model = _bert()
    assert (
        set(trained_parameters(model, "all")) == dict(model.named_parameters()).keys()
    )
    mlp, attention = (trained_parameters(model, part) for part in ("mlp", "attention"))
    assert not mlp.keys() & attention.keys()


def test_parts_of_a_decoder_and_of_the_image_mlp():
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2, n_positions=4)
    decoder = GPT2LMHeadModel(config)
    assert "transformer.h.1.mlp.c_fc.weight" in trained_parameters(decoder, "mlp")
    assert "transformer.h.1.attn.c_attn.bias" in trained_parameters(
        decoder, "attention"
    )
    image = Mlp(4, 3, 2)
    assert set(trained_parameters(image, "head")) == {"output.weight", "output.bias"}
    assert "blocks.0.linear.weight" in trained_parameters(image, "mlp")


@pytest.mark.parametrize("trained", ["layers:7-9", "no_such_module", "("])
def test_a_part_that_matches_nothing_is_refused(trained: str):
    with pytest.raises(UserError, match="argument trained must"):
        trained_parameters(_bert(), trained)


def test_a_tied_head_cannot_be_trained_alone():
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=4)
    with pytest.raises(UserError, match="argument trained must match a parameter"):
        trained_parameters(GPT2LMHeadModel(config), "head")
