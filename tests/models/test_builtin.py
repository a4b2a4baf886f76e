"""Built-in models and their tokenizers: determinism, sizes, words, errors."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from circuitcut.models.architectures import n_layers, sites_of
from circuitcut.models.builtin import (
    BUILTIN,
    HEADS_OF_BUILTIN,
    BuiltinSizes,
    build_builtin,
)
from circuitcut.models.tokenizer_training import TOKENIZER_KINDS, train_tokenizer
from circuitcut.storage.errors import UserError

NAMES = ["Mary", "John", "Anneliese", "O", "Zoë"]
TEXTS = [f"When {a} and {b}, went; {b} gave it to {a}." for a in NAMES for b in NAMES]
BUILDS = [(name, head) for name in sorted(BUILTIN) for head in HEADS_OF_BUILTIN[name]]


def build(name: str, head: str, **arguments: Any) -> Any:
    labels = None if head.endswith("_lm") else ["O", "LOC", "PER"]
    arguments = {"labels": labels, "texts": TEXTS, "n_pixels": 64} | arguments
    names = {field.name for field in fields(BuiltinSizes)} & arguments.keys()
    sizes = BuiltinSizes(**{name: arguments.pop(name) for name in names})
    return build_builtin(name, head=head, sizes=sizes, **arguments)


def tokens_of(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(("name", "head"), BUILDS)
def test_a_build_is_a_function_of_its_arguments(name: str, head: str):
    state = torch.random.get_rng_state()
    first, again, other = (build(name, head, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.model.parameters(), other.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert first.head_is_new
    assert not first.model.training
    assert first.config_hash == other.config_hash


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_tokenizer_is_a_function_of_its_texts(kind: Any):
    texts = [" ".join(f"w{i % 97}x{i * j % 89}" for i in range(60)) for j in range(9)]
    vocabularies = [
        train_tokenizer(
            texts, kind, is_decoder=False, vocab_size=400, max_length=64
        ).backend_tokenizer.to_str()
        for _ in range(3)
    ]
    assert len(set(vocabularies)) == 1


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-decoder"])
def test_every_name_is_one_token_of_the_word_tokenizer_wherever_it_stands(name: str):
    loaded = build(name, HEADS_OF_BUILTIN[name][0])
    tokens = tokens_of(loaded.tokenizer, "Mary, Anneliese and Zoë; O. John")
    expected = ["Mary", ",", "Anneliese", "and", "Zoë", ";", "O", ".", "John"]
    if name == "tiny-decoder":
        assert tokens == ["<bos>", *expected]
    else:
        assert tokens == ["[CLS]", *expected, "[SEP]"]
    assert tokens_of(loaded.tokenizer, "Mary Unheard")[2] in ("<unk>", "[UNK]")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_subword_tokenizers_spell_unseen_words_and_read_back(kind: Any):
    loaded = build("tiny-decoder", "causal_lm", tokenizer_kind=kind, vocab_size=330)
    text = "John gave Mary went"
    ids = loaded.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.unk_token_id not in ids
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == text
    spelt = loaded.tokenizer("MarJohn")["input_ids"]
    assert len(spelt) > 2
    assert loaded.tokenizer.unk_token_id not in spelt


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_offsets_cover_the_words_without_the_space_before_them(kind: Any):
    tokenizer = train_tokenizer(
        TEXTS, kind, is_decoder=True, vocab_size=400, max_length=32
    )
    text = "When Mary and John, went"
    coded = tokenizer(text, return_offsets_mapping=True)
    pieces = [text[a:b] for a, b in coded["offset_mapping"]]
    assert pieces[0] == ""  # the begin token
    assert all(piece == piece.strip() for piece in pieces)
    assert "".join(pieces) == text.replace(" ", "")


def test_sizes_are_as_asked():
    loaded = build(
        "tiny-decoder", "causal_lm", n_layers=3, d_model=48, n_heads=6, max_positions=20
    )
    assert n_layers(loaded.model) == 3
    site = sites_of(loaded.model, ["heads"])[0]
    assert (site.n_units, site.unit_size) == (6, 8)
    neurons = sites_of(loaded.model, ["neurons"])
    assert [s.n_units for s in neurons] == [192] * 3
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)
    assert loaded.tokenizer.model_max_length == 20
    assert loaded.is_decoder


@pytest.mark.parametrize(("name", "head"), BUILDS)
def test_the_count_of_weights_before_building_is_that_of_the_matrices(
    name: str, head: str
):
    loaded = build(name, head)
    n_words = getattr(loaded.model.config, "vocab_size", 0)
    sizes = BuiltinSizes(vocab_size=n_words, n_pixels=64)
    counted = sizes.n_matrix_weights(name)
    held = sum(p.numel() for p in loaded.model.parameters() if p.dim() == 2)
    assert 0.9 * held < counted <= held  # without the head


def test_dropout_is_active_in_training_mode_alone():
    for name, head in BUILDS:
        if name == "mlp":
            continue
        loaded = build(name, head, dropout=0.5)
        rates = {m.p for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {0.5}
        ids = torch.tensor([[2, 5, 6]])
        logits = [loaded.model(input_ids=ids).logits for _ in range(2)]
        assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "tiny-rnn", "head": "causal_lm"}, "must be a built-in model"),
        ({"name": "tiny-encoder", "head": "causal_lm"}, "has no head 'causal_lm'"),
        ({"name": "mlp", "head": "token_classification"}, "has no head"),
        (
            {"name": "mlp", "head": "image_classification", "labels": None},
            "labels must name the classes",
        ),
        (
            {"name": "mlp", "head": "image_classification", "labels": ["a", "a"]},
            "labels must be distinct",
        ),
        ({"name": "tiny-decoder", "head": "causal_lm", "texts": [" "]}, "hold text"),
        (
            {"name": "tiny-decoder", "head": "causal_lm", "d_model": 30},
            "multiple of n_heads=4, got 30",
        ),
        (
            {"name": "tiny-decoder", "head": "causal_lm", "tokenizer_kind": "chars"},
            "tokenizer_kind must be one of word, wordpiece, bpe, got 'chars'",
        ),
        (
            {
                "name": "tiny-decoder",
                "head": "causal_lm",
                "tokenizer_kind": "bpe",
                "vocab_size": 200,
            },
            "vocab_size must be at least 260 for bpe",
        ),
        (
            {"name": "tiny-decoder", "head": "causal_lm", "n_layers": 10_000_000},
            r"a tiny-decoder of these sizes takes 31,[\d,]+\.\d GB to train, and",
        ),
        (
            {
                "name": "mlp",
                "head": "image_classification",
                "labels": ["a"],
                "d_hidden": 10**10,
            },
            r"a mlp of these sizes takes 10,240.0 GB to train, and",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        build(**arguments)
