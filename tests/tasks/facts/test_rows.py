"""Which objects compete at which token, and what a row retains: worked out by hand."""

import numpy as np
import pytest

from circuitcut.data.facts.records import Fact
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.base import NO_TARGET
from circuitcut.tasks.facts.asked import asked_facts
from circuitcut.tasks.facts.rows import (
    CONCEPT,
    MOST_RIVALS,
    NEAR,
    NO_RIVAL,
    OTHER,
    Objects,
    branches,
    fact_row,
    padded_rivals,
)

FACTS = [
    Fact("India", "P36", "New Delhi", ("The capital of India is",)),
    Fact("Land", "P36", "New York", ("The capital of Land is",)),
    Fact("France", "P36", "Paris", ("The capital of France is",), choices=("Oslo",)),
    Fact("France", "P36", "Lyon", ("The capital of France is",)),
    Fact("Norway", "P36", "Oslo", ("The capital of Norway is",)),
    Fact("Norway", "P37", "Norse", ("They speak",)),
]
WORDS = (
    "The capital of India Land France Norway is New Delhi York Paris Lyon Oslo Norse"
)


def listed(rivals) -> list[list[int]]:
    return [of.tolist() for of in rivals]


def test_branches_are_the_next_tokens_of_objects_that_are_equal_so_far():
    others = [(1, 3), (2,), (1, 2, 5), (4, 4), (1,)]
    assert listed(branches((1, 2), others)) == [[2, 4], [3]]
    assert listed(branches((1, 2, 6), others)) == [[2, 4], [3], [5]]
    assert listed(branches((7,), [(7, 1)])) == [[]]


def test_of_many_rivals_some_are_drawn_by_the_seed():
    others = [(i,) for i in range(1, 400)]
    (some,) = branches((0,), others, seed="a")
    assert len(set(some.tolist())) == MOST_RIVALS
    assert some.tolist() == branches((0,), others, seed="a")[0].tolist()
    assert some.tolist() != branches((0,), others, seed="b")[0].tolist()


def prompts_and_objects(*, masked: bool):
    tokenizer = train_tokenizer(
        [WORDS + " They speak ."],
        "word",
        is_decoder=not masked,
        vocab_size=99,
        max_length=32,
    )
    prompts = asked_facts(FACTS, tokenizer, masked=masked).prompts
    pairs = [(FACTS[p.fact], p) for p in prompts]
    return tokenizer.convert_tokens_to_ids, prompts, Objects.of(FACTS, pairs)


@pytest.mark.parametrize("masked", [False, True])
def test_objects_compete_within_a_relation_unless_they_are_true_too(masked: bool):
    ids, prompts, objects = prompts_and_objects(masked=masked)
    found = [objects.rivals(FACTS[p.fact], p) for p in prompts]

    def named(rivals) -> list[set[int]]:
        return [set(of.tolist()) for of in rivals]

    one_word = {ids("Paris"), ids("Lyon"), ids("Oslo")}
    first = set() if masked else one_word  # of as many masks alone
    assert named(found[0]) == [first, {ids("York")}]
    assert named(found[1]) == [first, {ids("Delhi")}]
    assert named(found[2]) == [{ids("Oslo")}]  # the choice that the data name
    new = set() if masked else {ids("New")}
    assert named(found[3]) == [{ids("Oslo")} | new]  # Paris is true too
    assert named(found[4]) == [one_word - {ids("Oslo")} | new]
    assert named(found[5]) == [set()]


def test_a_decoder_s_row_retains_the_words_before_the_object():
    _, prompts, objects = prompts_and_objects(masked=False)
    prompt = prompts[0]
    rivals = objects.rivals(FACTS[0], prompt)

    def row(kind: int):
        return fact_row(prompt, rivals, kind=kind, cluster=3, unseen=True)

    concept = row(CONCEPT)
    at = prompt.position
    assert concept.inputs.tolist() == [*prompt.input_ids, prompt.answer_ids[0]]
    assert concept.targets[at:].tolist() == list(prompt.answer_ids)
    assert np.flatnonzero(concept.concept).tolist() == [at, at + 1]
    assert not concept.retain[at:].any()
    before = [t for t in range(at) if not prompt.special[t + 1]]
    assert np.flatnonzero(concept.retain).tolist() == before
    assert concept.targets[before].tolist() == [prompt.input_ids[t + 1] for t in before]
    assert concept.numbers["n_branches"] == concept.numbers["n_answer"] == 2
    other = row(OTHER)
    assert np.flatnonzero(other.retain).tolist() == [*before, at, at + 1]
    assert not other.concept.any()
    near = row(NEAR)
    assert not (near.concept | near.retain).any()
    assert near.targets[at:].tolist() == list(prompt.answer_ids)


def test_an_encoder_s_row_predicts_at_the_masks_alone():
    _, prompts, objects = prompts_and_objects(masked=True)
    rivals = objects.rivals(FACTS[0], prompts[0])
    row = fact_row(prompts[0], rivals, kind=CONCEPT, cluster=0, unseen=False)
    places = list(prompts[0].positions)
    assert np.flatnonzero(row.targets != NO_TARGET).tolist() == places
    assert np.flatnonzero(row.concept).tolist() == places[1:]  # New has no rival
    assert row.real[places].all()
    assert not row.retain.any()


def test_rivals_are_repeated_up_to_the_largest_number():
    table = padded_rivals([np.array([5, 6]), np.array([], int)], 3, 5)
    none = [NO_RIVAL] * 5
    assert table.tolist() == [[5, 6, 5, 6, 5], none, none]


def test_objects_of_another_language_do_not_compete():
    facts = [
        Fact(f"{land}", "P36", town, (f"{land} :",), language=language)
        for language, land, town in (
            *(("en", "France", "Paris"), ("en", "Italy", "Rome")),
            *(("fr", "France", "Paris"), ("fr", "Italie", "Roma")),
        )
    ]
    tokenizer = train_tokenizer(
        ["France Italy Italie : Paris Rome Roma"],
        "word",
        is_decoder=False,
        vocab_size=99,
        max_length=32,
    )
    prompts = asked_facts(facts, tokenizer, masked=True).prompts
    objects = Objects.of(facts, [(facts[p.fact], p) for p in prompts])
    ids = tokenizer.convert_tokens_to_ids
    found = [listed(objects.rivals(facts[p.fact], p)) for p in prompts]
    assert found == [[[ids(name)]] for name in ("Rome", "Paris", "Roma", "Paris")]
