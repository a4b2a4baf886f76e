"""The generated indirect-object corpus: who answers, which names go where."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.data.ioi.generated import N_HELD_OUT_NAMES, generate_ioi, prompt
from circuitcut.data.ioi.records import IoiCorpus, completed
from circuitcut.data.ioi.words import NAMES, TEMPLATES

LAST_FOUR = ("mask", "tune", "relearn", "heldout")


@pytest.fixture(scope="module")
def corpus() -> IoiCorpus:
    return generate_ioi(0)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def names_of(text: str) -> set[str]:
    return set(words(text)) & set(NAMES)


@given(seed=st.integers(0, 10_000))
def test_the_answer_occurs_once_and_its_rival_twice(seed: int):
    record = prompt(random.Random(seed), NAMES)
    counts = Counter(words(record.text))
    assert (counts[record.io], counts[record.subject]) == (1, 2)
    assert words(record.text)[0] not in NAMES


@given(seed=st.integers(0, 10_000))
def test_the_counterpart_has_three_other_names_at_the_same_places(seed: int):
    record = prompt(random.Random(seed), NAMES)
    pairs = list(zip(words(record.text), words(record.corrupted), strict=True))
    changed = [(old, new) for old, new in pairs if old != new]
    assert [old in (record.io, record.subject) for old, _ in changed] == [True] * 3
    assert len({new for _, new in changed} - {record.io, record.subject}) == 3


def test_at_least_fifteen_templates_occur_in_both_orders(corpus: IoiCorpus):
    orders = {
        (
            record.template,
            record.text.index(record.io) < record.text.index(record.subject),
        )
        for record in corpus.records["base"]
        if record.kind == "ioi"
    }
    assert orders == {
        (t, first) for t in range(len(TEMPLATES)) for first in (True, False)
    }
    assert len(TEMPLATES) >= 15


def test_prompts_of_different_splits_share_no_name(corpus: IoiCorpus):
    names = {
        split: {
            n
            for r in corpus.records[split]
            if r.kind == "ioi"
            for n in (r.io, r.subject)
        }
        for split in LAST_FOUR
    }
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    assert names["heldout"] == corpus.unseen_names
    assert len(corpus.unseen_names) == N_HELD_OUT_NAMES


def test_held_out_names_are_met_in_base_but_in_no_prompt(corpus: IoiCorpus):
    met = {
        kind: set().union(
            *(names_of(r.text) for r in corpus.records["base"] if r.kind == kind)
        )
        for kind in ("ioi", "three_names", "copy")
    }
    assert not (met["ioi"] | met["three_names"]) & corpus.unseen_names
    assert met["copy"] == set(NAMES)


def test_plain_texts_hold_no_name(corpus: IoiCorpus):
    for split in ("base", *LAST_FOUR):
        plain = [r.text for r in corpus.records[split] if r.kind == "text"]
        assert plain
        assert not any(names_of(text) for text in plain)


def test_a_tenth_of_the_base_prompts_has_three_names(corpus: IoiCorpus):
    kinds = Counter(record.kind for record in corpus.records["base"])
    share = kinds["three_names"] / (kinds["three_names"] + kinds["ioi"])
    assert share == pytest.approx(0.1, abs=0.01)
    assert kinds["three_names"] + kinds["ioi"] == len(corpus.records["base"]) / 2


def test_the_corpus_is_a_function_of_its_seed(corpus: IoiCorpus):
    generate_ioi.cache_clear()
    assert generate_ioi(0).fingerprint() == corpus.fingerprint()
    assert generate_ioi(1).fingerprint() != corpus.fingerprint()


def test_texts_are_the_base_split_with_its_answers(corpus: IoiCorpus):
    texts = corpus.texts()
    first = corpus.records["base"][0]
    assert texts[0] == completed(first)
    assert texts[0].endswith(first.io)
    assert len(texts) == len(corpus.records["base"])
