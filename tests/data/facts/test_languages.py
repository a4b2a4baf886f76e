"""Facts in several languages: which are the same, drawn and divided together."""

import gzip
import json
import os
from pathlib import Path

import pytest

from circuitcut.data.facts.concept import chosen_facts, evenly_drawn
from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.generated import CAPITAL
from circuitcut.data.facts.generated_languages import (
    ENDS,
    LANGUAGES,
    N_SUBJECTS,
    OBJECTS,
    TEMPLATES,
    generate_parallel_facts,
)
from circuitcut.data.facts.records import Fact, distinct, languages_of, relations_of
from circuitcut.data.facts.splits import place_others, split_facts
from circuitcut.storage.errors import UserError

HEAD = "Prompt\tAns\tCandidate Ans\tSubject\n"
ROWS = {
    "en": "The capital of Spain is <mask>.\tMadrid\tRome, Madrid\tSpain\n"
    "The capital of Italy is <mask>.\tRome\tRome, Madrid\tItaly\n",
    "fr": "Espagne a pour capitale <mask>.\tMadrid\tRome, Madrid\tEspagne\n"
    "Italie a pour capitale <mask>.\tRome\tRome, Madrid\tItalie\n",
    "nl": "Spanje heeft hoofdstad <mask>.\tMadrid\tRome, Madrid\tSpanje\n"
    "Italië heeft hoofdstad <mask>.\tRome\tRome, Madrid\tItalië\n",
}


def corpus(folder: Path, languages: str = "en fr nl") -> str:
    for name in languages.split():
        (folder / f"{name}.tsv.gz").write_bytes(
            gzip.compress((HEAD + ROWS[name]).encode())
        )
    return str(folder)


def test_rows_of_bmlama_with_one_number_are_one_fact_in_all_languages(tmp_path: Path):
    data = corpus(tmp_path)
    facts, _ = read_facts(data, languages=["nl", "fr"])
    assert [(f.language, f.subject, f.object) for f in facts] == [
        ("nl", "Spanje", "Madrid"),
        ("nl", "Italië", "Rome"),
        ("fr", "Espagne", "Madrid"),
        ("fr", "Italie", "Rome"),
    ]
    relation = "The capital of [X] is [MASK]."
    assert {f.relation for f in facts} == {relation}
    assert facts[0].parallel == facts[2].parallel == ("Spain", relation, "Madrid")
    assert facts[1].entity == facts[3].entity == "Italy"
    assert facts[0].key == ("Spanje", relation, "Madrid", "nl")


def test_without_the_english_file_the_first_language_names_facts(tmp_path: Path):
    facts, _ = read_facts(corpus(tmp_path, "fr nl"), languages=["nl", "fr"])
    relation = "[X] heeft hoofdstad [MASK]."
    assert facts[0].parallel == facts[2].parallel == ("Spanje", relation, "Madrid")


def test_rows_of_a_table_are_one_fact_by_their_number(tmp_path: Path):
    rows = [
        {"fact": n, "language": lang, "subject": s, "object": o, "prompt": "{} :"}
        for n, lang, s, o in (
            (1, "de", "Rom", "Italien"),
            (1, "it", "Roma", "Italia"),
            (2, "it", "Roma", "Lazio"),
        )
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, same, other = read_facts(str(file))[0]
    assert (first.language, same.language) == ("de", "it")
    assert first.parallel == same.parallel == ("Rom", "facts", "Italien")
    assert other.parallel == ("Roma", "facts", "Lazio")
    assert read_facts(str(file), languages=["it"])[0] == [same, other]
    with pytest.raises(UserError, match="which has de, it, got 'fr'"):
        read_facts(str(file), languages=["de", "fr"])


def test_a_wrong_language_or_number_of_rows_is_named(tmp_path: Path):
    data = corpus(tmp_path)
    with pytest.raises(UserError, match=r"such as en.tsv.gz, fr.tsv.gz.*got 'xx'"):
        read_facts(data, languages=["fr", "xx"])
    (tmp_path / "nl.tsv.gz").write_bytes(gzip.compress(HEAD.encode()))
    with pytest.raises(UserError, match="got 2 rows and, of nl, 0"):
        read_facts(data, languages=["fr", "nl"])
    with pytest.raises(UserError, match=r"one language's file .* with --language"):
        read_facts(data)
    with pytest.raises(UserError, match="no languages"):
        read_facts(str(tmp_path / "fr.tsv.gz"), languages=["fr"])
    with pytest.raises(UserError, match="one of en, fr, es, nl without --data, got"):
        generate_parallel_facts(("en", "zh"), 0)


def test_generated_facts_are_the_same_in_every_language():
    facts, texts = generate_parallel_facts(LANGUAGES, 0)
    n = sum(N_SUBJECTS.values())
    assert len(facts) == len(distinct(facts)) == n * len(LANGUAGES)
    assert languages_of(facts) == list(LANGUAGES)
    english = [fact.key[:3] for fact in facts[:n]]
    for place in range(0, len(facts), n):
        assert [fact.parallel for fact in facts[place : place + n]] == english
    assert facts == generate_parallel_facts(LANGUAGES, 0)[0]
    assert facts[:n] == generate_parallel_facts(("en",), 0)[0]
    assert facts[:n] != generate_parallel_facts(("en",), 1)[0][:n]
    assert len(texts) > 100


def test_translations_have_as_many_words_and_templates_in_every_language():
    for language in LANGUAGES:
        for relation in N_SUBJECTS:
            assert len(set(TEMPLATES[language][relation])) == 4
            for words in (ENDS, OBJECTS):
                counted = [len(words[name].get(relation, "").split()) for name in ENDS]
                assert len(set(counted)) == 1, (words[language], relation)


def test_facts_are_drawn_in_all_languages_and_chosen_by_one_name():
    facts, _ = generate_parallel_facts(("en", "nl"), 0)
    drawn = evenly_drawn(facts, 16, seed=0)
    assert relations_of(drawn) == dict.fromkeys(N_SUBJECTS, 8)
    english, dutch = (
        {f.parallel for f in drawn if f.language == name} for name in ("en", "nl")
    )
    assert english == dutch
    of_capital = [fact for fact in facts if fact.relation == CAPITAL]
    dutch_name = next(f for f in of_capital if f.entity != f.subject)
    for name in (dutch_name.entity, dutch_name.subject):
        chosen, others, _ = chosen_facts(facts, f"subject:{name}")
        assert [f.parallel for f in chosen] == [dutch_name.parallel] * 2
        assert len(others) == len(facts) - 2


def test_a_listed_fact_is_chosen_in_every_language(tmp_path: Path):
    facts, _ = generate_parallel_facts(("en", "nl"), 0)
    table = tmp_path / "mine.tsv"
    table.write_text(f"subject\trelation\n{facts[0].subject}\t{CAPITAL}\n")
    chosen, _, _ = chosen_facts(facts, str(table))
    assert {f.language for f in chosen} == {"en", "nl"}


@pytest.mark.parametrize("by_object", [False, True])
def test_the_languages_of_a_fact_are_in_one_split(by_object: bool):
    facts, _ = generate_parallel_facts(("en", "fr", "nl"), 0)
    concept = [f for f in facts if f.relation == CAPITAL]
    others = [f for f in facts if f.relation != CAPITAL]
    found = split_facts(concept, by_object=by_object, seed=0)
    placed = place_others(others, concept, found, seed=0)
    for of, splits in ((concept, found.splits), (others, placed)):
        homes: dict[str, set[str]] = {}
        for split, numbers in splits.items():
            for number in numbers:
                homes.setdefault(of[number].entity, set()).add(split)
        assert set(map(len, homes.values())) == {1}
    assert sum(map(len, found.splits.values())) == len(concept)


def test_a_fact_without_a_language_has_the_key_that_it_had():
    fact = Fact("France", "P36", "Paris", ("France :",))
    assert fact.key == fact.parallel == ("France", "P36", "Paris")
    assert fact.entity == "France"
    assert languages_of([fact]) == []


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
def test_bmlama_has_its_facts_in_four_languages():
    facts, _ = read_facts(
        f"{os.environ['CIRCUITCUT_DATA']}/bmlama17", languages=["en", "fr", "es", "nl"]
    )
    assert len(facts) == 4 * 6792
    assert len(relations_of(facts)) == 38
    assert {f.parallel for f in facts} == {f.key[:3] for f in facts[:6792]}
