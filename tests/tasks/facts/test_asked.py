"""Prompts in tokens: the object's position and all its tokens, worked out by hand."""

from circuitcut.data.facts.records import Fact
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.facts.asked import (
    BEHIND,
    LONG,
    UNKNOWN,
    asked_facts,
    padded_prompts,
)

FACTS = [
    Fact(
        "France",
        "P36",
        "Paris",
        ("The capital of France is [MASK] .", "[MASK] rules France", "France :"),
        neighbourhood=("The capital of Gaul is",),
    ),
    Fact("India", "P36", "New Delhi", ("The capital of India is",)),
    Fact("Peru", "P36", "Lima", ("The capital of Peru is",)),
]
TEXTS = ["The capital of France India Peru Gaul is Paris New Delhi . rules :"]


def asked(*, masked: bool, **options):
    tokenizer = train_tokenizer(
        TEXTS, "word", is_decoder=not masked, vocab_size=99, max_length=32
    )
    return tokenizer, asked_facts(FACTS, tokenizer, masked=masked, **options)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_a_decoder_answers_behind_the_prompt_and_reads_an_object_of_two_tokens():
    tokenizer, found = asked(masked=False)
    n_begin = len(tokenizer("").input_ids)  # a begin-of-text token, if it has one
    first, colon, india = found.prompts
    assert words(tokenizer, first.input_ids)[n_begin:] == [
        "The",
        "capital",
        "of",
        "France",
        "is",
    ]
    assert words(tokenizer, first.answer_ids) == ["Paris"]
    assert first.positions == (len(first.input_ids) - 1,)
    assert first.whole_ids == first.input_ids
    assert (colon.fact, colon.text) == (0, "France :")
    assert words(tokenizer, india.answer_ids) == ["New", "Delhi"]
    assert words(tokenizer, india.whole_ids)[-2:] == ["is", "New"]
    last = len(india.input_ids) - 1
    assert india.positions == (last, last + 1)
    reasons = {reason: len(facts) for reason, facts in found.left_out.items()}
    assert reasons == {BEHIND: 1, UNKNOWN: 1}
    assert [len(prompts) for prompts in found.of_fact(3)] == [2, 1, 0]


def test_an_encoder_has_a_mask_for_every_token_of_the_object():
    tokenizer, found = asked(masked=True)
    mask = tokenizer.mask_token
    assert len(found.prompts) == 4  # Lima is unknown
    first, front, colon, india = found.prompts
    inner = [words(tokenizer, p.input_ids)[1:-1] for p in found.prompts]
    assert inner[0] == ["The", "capital", "of", "France", "is", mask, "."]
    assert inner[1] == [mask, "rules", "France"]
    assert inner[2] == ["France", ":", mask, "."]  # at the end, before a full stop
    assert inner[3] == ["The", "capital", "of", "India", "is", mask, mask, "."]
    assert (first.position, front.position, colon.position) == (6, 1, 3)
    assert india.positions == (6, 7)
    assert india.whole_ids == india.input_ids
    assert len(india.special) == len(india.input_ids)
    assert {p.masked for p in found.prompts} == {True}


def test_long_prompts_are_left_out_and_neighbours_are_asked_alone():
    tokenizer, found = asked(masked=True, max_length=8)
    assert {p.text.split()[0] for p in found.prompts} == {
        tokenizer.mask_token,
        "France",
    }
    assert len(found.left_out[LONG]) == 3
    _, near = asked(masked=False, neighbourhood=True)
    assert [(p.fact, p.text) for p in near.prompts] == [(0, "The capital of Gaul is")]


def test_a_batch_is_padded_on_the_right():
    _, found = asked(masked=False)
    batch = padded_prompts(found.prompts, pad_id=7, whole=True)
    lengths = [len(p.whole_ids) for p in found.prompts]
    assert batch["input_ids"].shape == (3, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()
    assert batch["n_answer"].tolist() == [1, 1, 2]
    assert batch["answer_ids"][:2, 1].tolist() == [-1, -1]
    assert batch["fact"].tolist() == [0, 0, 1]
    for row, prompt in enumerate(found.prompts):
        for position, answer in zip(prompt.positions, prompt.answer_ids, strict=True):
            following = batch["input_ids"][row, position + 1 :].tolist()
            assert position == prompt.positions[-1] or following[0] == answer
    bare = padded_prompts(found.prompts, pad_id=7)
    rows = range(3)
    assert bare["attention_mask"].sum(1).tolist() == [
        int(bare["position"][row]) + 1 for row in rows
    ]
    assert padded_prompts([], 0)["input_ids"].shape == (0, 0)
