"""A fact is known if its object has rank 1 in half of its prompts: planted models."""

import json
from pathlib import Path

import pytest

from circuitcut.data.facts.records import Fact
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.cache import cache_folder
from circuitcut.tasks.facts.asked import asked_facts
from circuitcut.tasks.facts.known import (
    cached_right_prompts,
    right_prompts,
    shares_right,
)
from tests.tasks.facts.rote import Rote

FACTS = [
    Fact("India", "P36", "New Delhi", ("The capital of India is", "India :")),
    Fact("France", "P36", "Paris", ("The capital of France is", "France :", "In {}")),
]
TOKENIZER = train_tokenizer(
    ["The capital of India France is New Delhi Paris York : In { }"],
    "word",
    is_decoder=True,
    vocab_size=99,
    max_length=32,
)
PROMPTS = asked_facts(FACTS, TOKENIZER, masked=False).prompts
DELHI, OTHER_WAY, PARIS, COLON, IN = PROMPTS


def model_with(*lines: tuple[tuple[int, ...], int]) -> Rote:
    return Rote(dict(lines), len(TOKENIZER))


def test_every_token_of_the_object_must_have_the_highest_logit():
    new, delhi = DELHI.answer_ids
    york = TOKENIZER.convert_tokens_to_ids("York")
    both = model_with((DELHI.input_ids, new), ((*DELHI.input_ids, new), delhi))
    assert right_prompts(PROMPTS, both, 0) == [True, False, False, False, False]
    first = model_with((DELHI.input_ids, new), ((*DELHI.input_ids, new), york))
    assert not any(right_prompts(PROMPTS, first, 0))
    paris = model_with((PARIS.input_ids, *PARIS.answer_ids))
    assert right_prompts(PROMPTS, paris, 0) == [False, False, True, False, False]


def test_the_order_of_the_prompts_is_kept_whatever_their_lengths():
    lines = [(p.input_ids, p.answer_ids[0]) for p in (COLON, PARIS)]
    found = right_prompts(list(reversed(PROMPTS)), model_with(*lines), 0)
    assert found == [False, True, True, False, False]


def test_shares_are_of_the_prompts_of_each_fact():
    assert shares_right(PROMPTS, [True, False, True, True, False], 3) == [
        0.5,
        pytest.approx(2 / 3),
        0.0,
    ]


def test_answers_are_computed_once_for_a_key_and_a_damaged_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path))
    model = model_with((PARIS.input_ids, *PARIS.answer_ids))
    first = cached_right_prompts(PROMPTS, model, 0, "weights", "data")
    n_passes = model.n_passes
    assert first == cached_right_prompts(PROMPTS, model, 0, "weights", "data")
    assert model.n_passes == n_passes
    silent = model_with()
    assert not any(cached_right_prompts(PROMPTS, silent, 0, "others", "data"))
    (file,) = [
        file
        for file in (cache_folder() / "known").iterdir()
        if any(json.loads(file.read_text())["right"])
    ]
    for damage in ('{"right": [1]}', '{"right": [true]}', "{"):
        file.write_text(damage)
        assert cached_right_prompts(PROMPTS, model, 0, "weights", "data") == first
