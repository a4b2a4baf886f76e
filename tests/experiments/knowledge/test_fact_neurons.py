"""The units of a fact by language, with prompts whose units are given."""

from types import SimpleNamespace
from typing import Any

import pytest

import circuitcut
from circuitcut.data.facts.records import Fact
from circuitcut.experiments.knowledge.fact_neurons import FactNeurons
from circuitcut.experiments.knowledge.facts import KnownFact
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.storage.errors import UserError

SETS = {  # units of three prompts of every fact
    "Spain": ([(0, 1), (0, 2)], [(0, 1)], [(0, 1), (1, 3)]),
    "Espagne": ([(0, 1), (1, 3)], [(0, 1), (1, 3)], [(1, 4)]),
    "Italy": ([(0, 5)], [(0, 5)], [(0, 5)]),
    "Italie": ([(0, 1)], [(0, 1)], [(0, 5)]),
    "Roma": ([(0, 7)], [(0, 7)], [(0, 7)]),
}


class Given:
    """Finds the units of `SETS`, and counts how often it is asked."""

    config = KnowledgeFlags(task="facts")
    n_asked = 0

    def prompts_of(self, known: KnownFact) -> Any:
        self.n_asked += 1
        return [{"coarse": units} for units in SETS[known.fact.subject]]


def neurons() -> FactNeurons:
    names = [
        *(("en", "Spain", "Spain"), ("en", "Italy", "Italy")),
        *(
            ("fr", "Espagne", "Spain"),
            ("fr", "Italie", "Italy"),
            ("en", "Roma", "Roma"),
        ),
    ]
    facts = tuple(
        KnownFact(
            Fact(
                subject,
                "capital",
                "x",
                ("p",),
                language=language,
                same_as=(english, "capital", "x"),
            ),
            (),
            (),
        )
        for language, subject, english in names
    )
    return FactNeurons(Given(), facts, n_units=16)  # type: ignore[arg-type]


def test_units_of_most_prompts_by_language_and_their_intersection():
    found = neurons()
    units = found.of("Spain")
    assert units == {
        "en": frozenset({(0, 1)}),
        "fr": frozenset({(0, 1), (1, 3)}),
    }
    assert units["en"] & units["fr"] == {(0, 1)}
    assert found.of("Espagne") == found.of(("Spain", "capital", "x")) == units
    assert found.of("Roma") == {"en": frozenset({(0, 7)})}
    assert found.known_in_all == [
        ("Spain", "capital", "x"),
        ("Italy", "capital", "x"),
    ]
    assert found.finder.n_asked == 3  # type: ignore[attr-defined]


def test_overlap_stands_beside_other_facts_and_random_sets():
    (row,) = neurons().overlap()
    assert row["languages"] == ("en", "fr")
    assert row["n_facts"] == 2
    assert row["same_fact"] == pytest.approx((1 / 2 + 0) / 2)
    # Spain en with Italy fr: {(0, 1)} both; Italy en with Spain fr: nothing in common
    assert row["other_fact"] == pytest.approx((1 + 0) / 2)
    # one of 16 in a set of two: Jaccard 1/2 with probability 1/8; in a set of one: 1/16
    assert row["random"] == pytest.approx((1 / 16 + 1 / 16) / 2)


def test_an_unknown_subject_or_one_of_several_facts_is_refused():
    found = neurons()
    with pytest.raises(UserError, match=r"one known fact \(Spain, .*got 'Peru'"):
        found.of("Peru")
    twice = FactNeurons(
        found.finder,
        (
            *found.facts,
            KnownFact(Fact("Roma", "hue", "x", ("p",), language="en"), (), ()),
        ),
        16,
    )
    with pytest.raises(UserError, match="got 'Roma', the subject of 2 facts"):
        twice.of("Roma")


def test_rules_that_need_other_facts_are_refused_and_the_name_is_public():
    assert circuitcut.FactNeurons is FactNeurons
    config = KnowledgeFlags(task="facts", negatives="others")
    with pytest.raises(UserError, match="refined by a share of its prompts"):
        FactNeurons.of_run(config, SimpleNamespace())  # type: ignore[arg-type]
