"""The concept by relation, subject or file, and splits without common subjects."""

from itertools import combinations
from pathlib import Path

import pytest

from circuitcut.data.facts.concept import chosen_facts, evenly_drawn
from circuitcut.data.facts.records import Fact, relations_of
from circuitcut.data.facts.splits import place_others, split_facts
from circuitcut.storage.errors import UserError


def fact(subject: str, relation: str, answer: str) -> Fact:
    return Fact(subject, relation, answer, (f"{relation} of {subject} is",))


FACTS = [
    *(fact(f"Land {i}", "capital", f"Town {i}") for i in range(12)),
    *(fact(f"Land {i}", "largest city", f"Town {i}") for i in range(3)),
    *(fact(f"Land {i}", "continent", ("Asia", "Africa")[i % 2]) for i in range(8)),
]


@pytest.mark.parametrize(
    ("concept", "n", "name"),
    [
        (None, 12, "capital"),
        ("continent", 8, "continent"),
        ("LARGEST", 3, "largest city"),
        ("largest|cap", 15, "largest city|capital"),
        ("subject:Land 1", 3, "subject:Land 1"),
        ("subject:Land 11|Land 2", 4, "subject:Land 11|Land 2"),
    ],
)
def test_a_concept_is_relations_or_subjects(concept: str | None, n: int, name: str):
    chosen, others, found = chosen_facts(FACTS, concept)
    assert (len(chosen), len(others), found) == (n, len(FACTS) - n, name)


def test_a_concept_is_a_table_of_facts(tmp_path: Path):
    table = tmp_path / "mine.tsv"
    table.write_text("subject\trelation\nLand 0\tcapital\nLand 1\tcontinent\n")
    chosen, _, name = chosen_facts(FACTS, str(table))
    assert [f.key for f in chosen] == [FACTS[0].key, FACTS[16].key]
    assert name == "mine.tsv"
    table.write_text("subject\tobject\nLand 0\tTown 0\nLand 1\tRome\n")
    with pytest.raises(UserError, match=r"mine\.tsv, line 3: --data must hold this"):
        chosen_facts(FACTS, str(table))


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("river", r"got 'river'; relations and their facts: capital \(12\)"),
        ("i", r"got 'i'; it may be: capital \(12\), largest city \(3\)"),
        ("capital|", "got ''"),
        ("subject:Mars", r"subject of the data \(Land 0, Land 1"),
    ],
)
def test_an_unknown_concept_is_refused_with_what_there_is(concept: str, message: str):
    with pytest.raises(UserError, match=message):
        chosen_facts(FACTS, concept)


def test_facts_are_drawn_evenly_from_relations():
    drawn = evenly_drawn(FACTS, 11, seed=0)
    assert relations_of(drawn) == {"capital": 4, "largest city": 3, "continent": 4}
    assert drawn == evenly_drawn(FACTS, 11, seed=0) != evenly_drawn(FACTS, 11, seed=1)
    assert evenly_drawn(FACTS, 99, seed=0) == FACTS


def subjects_of(facts: list[Fact], numbers: list[int]) -> set[str]:
    return {facts[i].subject for i in numbers}


def test_splits_share_no_subject_and_say_how_many_objects_they_share():
    of_prompts = [f for f in FACTS if f.relation == "continent" for _ in range(3)]
    found = split_facts(of_prompts, by_object=False, seed=0)
    assert sorted(i for of in found.splits.values() for i in of) == list(range(24))
    for one, other in combinations(found.splits.values(), 2):
        assert not subjects_of(of_prompts, one) & subjects_of(of_prompts, other)
    assert all(found.splits.values())
    assert found.by == "subject"
    assert found.objects_outside == 1.0  # both continents are in `mask`
    with pytest.raises(UserError, match=r"needs 4 groups .* got 2"):
        split_facts(of_prompts, by_object=True, seed=0)


def test_splits_by_object_share_neither_and_follow_chains():
    chain = [fact("a", "r", "1"), fact("b", "r", "1"), fact("b", "r", "2")]
    facts = [*chain, *(fact(f"s{i}", "r", f"o{i // 2}") for i in range(12))]
    found = split_facts(facts, by_object=True, seed=3)
    home = {i: name for name, of in found.splits.items() for i in of}
    assert len({home[0], home[1], home[2]}) == 1
    for one, other in combinations(found.splits.values(), 2):
        assert not {facts[i].object for i in one} & {facts[i].object for i in other}
    assert (found.by, found.objects_outside) == ("object", 0.0)


def test_few_subjects_are_split_by_fact_and_a_fact_by_prompt():
    facts = [fact("France", f"r{i}", "x") for i in range(5) for _ in range(2)]
    found = split_facts(facts, by_object=False, seed=0)
    assert found.by == "fact"
    assert all(
        {i - i % 2, i - i % 2 + 1} <= set(of)
        for of in found.splits.values()
        for i in of
    )
    one = split_facts([facts[0]] * 4, by_object=False, seed=0)
    assert (one.by, [len(of) for of in one.splits.values()]) == ("prompt", [1, 1, 1, 1])
    with pytest.raises(UserError, match="at least 4 prompts, one a split, got 3"):
        split_facts([facts[0]] * 3, by_object=False, seed=0)


def test_other_facts_of_a_subject_are_in_its_split():
    capitals = [f for f in FACTS if f.relation == "capital"]
    others = [f for f in FACTS if f.relation != "capital"]
    others += [fact(f"Sea {i}", "depth", "deep") for i in range(8)]
    found = split_facts(capitals, by_object=False, seed=1)
    placed = place_others(others, capitals, found, seed=1)
    assert sorted(i for of in placed.values() for i in of) == list(range(len(others)))
    for name in placed:
        home = subjects_of(capitals, found.splits[name])
        assert {s for s in subjects_of(others, placed[name]) if "Land" in s} <= home
        assert any("Sea" in s for s in subjects_of(others, placed[name]))
