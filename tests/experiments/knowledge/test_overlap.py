"""Overlap of facts by relation and language against sets worked out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from circuitcut.data.facts.records import Fact
from circuitcut.experiments.knowledge.overlap import (
    by_relation,
    overlap_of_groups,
    overlap_rows,
)

A, B, C, D = (0, 0), (0, 1), (1, 0), (1, 1)
FACTS = [  # subject, relation, language, units
    ("Peru", "capital", "en", {A, B}),
    ("Iran", "capital", "en", {A, C}),
    ("Peru", "hue", "en", {D}),
    ("Peru", "capital", "fr", {A, B, C}),
    ("Iran", "capital", "fr", {C}),
]


def study(facts: list[Any]) -> Any:
    known = [
        SimpleNamespace(
            fact=Fact(
                f"{subject} {language}".strip(),
                relation,
                "x",
                ("p",),
                language=language,
                same_as=(subject, relation, "x"),
            )
        )
        for subject, relation, language, _ in facts
    ]
    sets = {i: frozenset(units) for i, (*_, units) in enumerate(facts)}
    return SimpleNamespace(facts=known, refined_sets=sets, widths=[2, 6])


def only(rows: list[Any], **wanted: str) -> Any:
    (row,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    return row


def test_the_same_fact_is_compared_between_languages():
    rows = overlap_of_groups(study(FACTS))
    row = only(rows, by="language", one="en", other="fr", pairs="the same fact")
    assert row["n_pairs"] == 2
    assert row["jaccard"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # sizes 2 and 3 of 8: both, one or none of the two are among the three
    first = (3 * 1 / 28 * (2 / 3)) + (3 * 5 / 28 * (1 / 4))
    second = 2 / 8 * (1 / 2)  # sizes 2 and 1
    assert row["random"] == pytest.approx((first + second) / 2)


def test_different_facts_of_a_relation_are_compared_within_and_between_languages():
    rows = overlap_of_groups(study(FACTS))
    pairs = "two facts of one relation"
    within = only(rows, by="language", one="en", other="en", pairs=pairs)
    assert (within["n_pairs"], within["jaccard"]) == (1, pytest.approx(1 / 3))
    between = only(rows, by="language", one="en", other="fr", pairs=pairs)
    # Peru en with Iran fr: {A, B} and {C}; Iran en with Peru fr: {A, C}, {A, B, C}
    assert (between["n_pairs"], between["jaccard"]) == (2, pytest.approx(1 / 3))


def test_relations_are_compared_in_one_language_alone():
    rows = overlap_of_groups(study(FACTS))
    row = only(rows, by="relation", one="capital", other="hue")
    assert (row["n_pairs"], row["jaccard"]) == (2, 0.0)  # of English facts
    row = only(rows, by="relation", one="capital", other="capital")
    # {A, B} with {A, C} in English, {A, B, C} with {C} in French
    assert (row["n_pairs"], row["jaccard"]) == (2, pytest.approx((1 / 3 + 1 / 3) / 2))
    assert {name: len(sets) for name, sets in by_relation(study(FACTS)).items()} == {
        "capital": 4,
        "hue": 1,
    }


def test_the_summary_has_a_row_for_every_kind_of_pair():
    rows = {row["pairs"]: row for row in overlap_rows(overlap_of_groups(study(FACTS)))}
    assert list(rows) == [
        "same relation",
        "other relations",
        "same fact, other language",
        "same relation, other language",
    ]
    assert rows["same fact, other language"]["n_pairs"] == 2
    assert rows["same relation, other language"]["n_pairs"] == 2
    alone = [(s, r, "", u) for s, r, language, u in FACTS if language == "en"]
    groups = overlap_of_groups(study(alone))
    assert {row["by"] for row in groups} == {"relation"}
    assert [row["pairs"] for row in overlap_rows(groups)] == [
        "same relation",
        "other relations",
    ]
