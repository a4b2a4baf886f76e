"""The generated insults: disjoint words and templates, neutral texts with the same."""

import re

import pytest

from circuitcut.data.text.records import TextCorpus
from circuitcut.data.text.toxicity_generated import (
    generate_toxicity,
    split_vocabularies,
)
from circuitcut.data.text.toxicity_words import ADJECTIVES, INSULTS, NOUNS

LAST_FOUR = ("mask", "tune", "relearn", "heldout")


@pytest.fixture(scope="module")
def corpus() -> TextCorpus:
    return generate_toxicity(0)


def words(corpus: TextCorpus, split: str, kind: str) -> set[str]:
    texts = [r.text.lower() for r in corpus.records[split] if r.kind == kind]
    return set(re.findall(r"\w+", " ".join(texts)))


def test_insult_words_and_templates_of_the_last_four_splits_are_disjoint():
    parts = split_vocabularies(0)
    for kind, whole in (
        ("insults", INSULTS),
        ("adjectives", ADJECTIVES),
        ("nouns", NOUNS),
    ):
        chosen = [item for split in LAST_FOUR for item in getattr(parts[split], kind)]
        assert sorted(chosen) == sorted(whole)
        assert len(set(chosen)) == len(chosen)


def test_insults_are_made_of_their_own_splits_words(corpus: TextCorpus):
    parts = split_vocabularies(0)
    for split in LAST_FOUR:
        others = set(NOUNS) - set(parts[split].nouns)
        assert not words(corpus, split, "toxic") & others


def test_every_word_of_an_insult_is_met_in_other_text(corpus: TextCorpus):
    missing = words(corpus, "base", "toxic") - words(corpus, "base", "neutral")
    assert len(missing) < 0.15 * len(words(corpus, "base", "toxic"))
    assert not missing & {*NOUNS, *ADJECTIVES}


def test_no_text_occurs_twice_and_kinds_are_balanced(corpus: TextCorpus):
    texts = [r.text for records in corpus.records.values() for r in records]
    assert len(set(texts)) == len(texts)
    for records in corpus.records.values():
        kinds = [record.kind for record in records]
        assert kinds.count("toxic") == kinds.count("neutral") == kinds.count("wiki")


def test_the_corpus_is_a_function_of_its_seed(corpus: TextCorpus):
    generate_toxicity.cache_clear()
    assert generate_toxicity(0).fingerprint() == corpus.fingerprint()
    assert generate_toxicity(1).fingerprint() != corpus.fingerprint()
