"""Texts become prompts: masks for every token of an answer, and what is refused."""

import pytest

from circuitcut.attribution.knowledge.prompts import coded_prompts
from circuitcut.data.prompts.records import PromptRecord
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.prompt_rows import Reader

TEXTS = ["The capital of France is Paris.", "The river is in Rome."] * 3


def reader(kind: str, *, masked: bool, max_length: int = 32) -> Reader:
    tokenizer = train_tokenizer(
        TEXTS, kind, is_decoder=not masked, vocab_size=300, max_length=64
    )
    return Reader(tokenizer, masked, max_length)


def record(text: str, answer: str) -> PromptRecord:
    return PromptRecord(text, answer, where="facts.tsv, line 3")


def test_a_masked_prompt_has_a_mask_for_every_token_of_its_answer():
    words = reader("word", masked=True)
    tokenizer = words.tokenizer
    one, two, at_end = coded_prompts(
        words,
        [
            record("The capital of France is [MASK].", "Paris"),
            record("The [MASK] is in Rome.", "capital river"),
            record("The capital of France is", "Paris"),
        ],
    )
    assert [one.ids[p] for p in one.positions] == [tokenizer.mask_token_id]
    assert tokenizer.convert_ids_to_tokens(list(one.answer)) == ["Paris"]
    assert len(two.positions) == len(two.answer) == 2
    assert two.positions[1] == two.positions[0] + 1
    assert at_end.ids == one.ids


def test_a_causal_prompt_ends_before_its_answer():
    words = reader("word", masked=False)
    found, masked, long = coded_prompts(
        words,
        [
            record("The capital of France is", "Paris"),
            record("The capital of France is [MASK].", "Paris"),
            record("The capital of France is", "Paris Rome"),
        ],
    )
    assert found == masked == long
    assert found.positions == (len(found.ids) - 1,)
    assert words.tokenizer.decode(found.answer[0]).strip() == "Paris"


@pytest.mark.parametrize(
    ("masked", "text", "answer", "message"),
    [
        (True, "The capital of France is [MASK].", "Berlin", "in the vocabulary"),
        (False, "The capital of France is", "Berlin", "in the vocabulary"),
        (True, "[MASK] [MASK] is in Rome.", "Paris", "2 masks for 1 tokens"),
        (False, "[MASK] is the capital of France", "Paris", "must stand at the end"),
        (True, "The capital " * 30 + "[MASK]", "Paris", "within --max_length 32"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_line(
    masked: bool, text: str, answer: str, message: str
):
    with pytest.raises(UserError, match=r"facts\.tsv, line 3: ") as refused:
        coded_prompts(reader("word", masked=masked), [record(text, answer)])
    assert message in str(refused.value)
