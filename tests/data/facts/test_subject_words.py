"""Words of subjects: from tables, facts and a corpus ranked by BM25."""

import json
import math
from pathlib import Path

import pytest

from circuitcut.data.facts.records import Fact
from circuitcut.data.facts.subject_words import (
    common_words,
    read_subject_words,
    words_in,
    words_of_facts,
    words_of_paragraphs,
)
from circuitcut.storage.errors import UserError

PARAGRAPHS = [
    "France makes wine, and France makes cheese.",
    "Cheese comes from Norway too.",
    "A cat purrs.",
    "Wine is made in many places, one of them is sunny France.",
]


def test_words_are_lower_case_and_say_something():
    assert words_in(["The Wine of Ay", "wine"]) == {"wine"}


def test_words_of_facts_are_those_of_all_objects():
    facts = [
        Fact("France", "P36", "Paris", ("France is",)),
        Fact("France", "P37", "French language", ("France is",)),
        Fact("Norway", "P36", "Oslo", ("Norway is",)),
    ]
    assert words_of_facts(facts) == {
        "France": {"paris", "french", "language"},
        "Norway": {"oslo"},
    }


def test_paragraphs_are_ranked_by_bm25_and_need_the_subjects_name():
    """Twice in few words before once: f / (f + k (1 - b + b n / mean))."""
    assert "sunny" in words_of_paragraphs(["France"], PARAGRAPHS)["France"]
    best = words_of_paragraphs(["France"], PARAGRAPHS, 1)["France"]
    assert best == {"france", "makes", "wine", "cheese"}
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    twice, once = (
        idf * f / (f + 1.5 * (1 - 0.75 + 0.75 * n / (17 / 4)))
        for f, n in ((2, 6), (1, 5))
    )
    assert twice > once
    found = words_of_paragraphs(["Norway", "the", "Atlantis"], PARAGRAPHS)
    assert found == {
        "Norway": {"cheese", "comes", "norway"},
        "the": frozenset(),
        "Atlantis": frozenset(),
    }
    with pytest.raises(UserError, match="must hold words, got none"):
        words_of_paragraphs(["France"], ["..", ""])


def test_common_words_are_those_of_more_than_a_share_of_the_paragraphs_with_words():
    """Of four: france in 2, wine in 2, cheese in 2, all others in one."""
    paragraphs = [*PARAGRAPHS, "...", ""]
    assert common_words(paragraphs, 0.49) == {"france", "wine", "cheese"}
    assert common_words(paragraphs, 0.5) == frozenset()
    assert "cat" in common_words(paragraphs, 0.24)
    assert common_words(paragraphs, 1.0) == frozenset()


def test_tables_and_json_give_the_same_words(tmp_path: Path):
    expected = {"France": {"paris", "wine"}, "Norway": {"oslo"}}
    (tmp_path / "a.json").write_text(
        json.dumps({"France": ["Paris", "wine"], "Norway": ["Oslo"]})
    )
    (tmp_path / "a.tsv").write_text(
        "subject\twords\nFrance\tParis\nFrance\twine\nNorway\tOslo|of\n"
    )
    rows = [
        {"Subject": "France", "word": ["Paris", "wine"]},
        {"Subject": "Norway", "word": "Oslo"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("a.json", "a.tsv", "rows.json"):
        assert read_subject_words(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"France": "Paris"}', "a.json"),
        ("a.json", '{"France": []}', "must hold words of subjects"),
        ("a.tsv", "name\twords\nFrance\tParis\n", "columns subject and words"),
        ("a.tsv", "subject\twords\n \tParis\n", "subject must be text"),
    ],
)
def test_a_table_that_is_none_is_refused(
    name: str, content: str, message: str, tmp_path: Path
):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_subject_words(tmp_path / name)
