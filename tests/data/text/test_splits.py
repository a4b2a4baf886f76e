"""Splits of texts: disjoint, whole documents, and what counts as unseen."""

import pytest

from circuitcut.data.text.records import TextRecord
from circuitcut.data.text.splits import SPLIT_SHARES, split_texts
from circuitcut.storage.errors import UserError

SPLITS = {"base", "mask", "tune", "relearn", "heldout"}


def records(kind: str, n: int, **fields: str) -> list[TextRecord]:
    return [TextRecord(f"{kind} number {i} of them", kind, **fields) for i in range(n)]


def test_every_text_is_in_one_split_in_the_stated_shares():
    texts = records("toxic", 200) + records("neutral", 100) + records("wiki", 300)
    corpus = split_texts(texts, seed=0)
    placed = [r.text for rows in corpus.records.values() for r in rows]
    assert sorted(placed) == sorted(r.text for r in texts)
    assert corpus.records.keys() == SPLITS
    for split, (share, most) in SPLIT_SHARES.items():
        n_toxic = sum(r.kind == "toxic" for r in corpus.records[split])
        assert n_toxic == min(round(share * 200), most)


def test_a_text_stays_in_its_split_when_others_come_in_another_order():
    texts = records("toxic", 50) + records("neutral", 50)
    one, two = split_texts(texts, seed=3), split_texts(texts[::-1], seed=3)
    for split in SPLITS:
        assert set(one.records[split]) == set(two.records[split])
    assert split_texts(texts, seed=4).fingerprint() != one.fingerprint()


def test_documents_are_not_divided():
    wiki = [TextRecord(f"w{i}", "wiki", document=f"d{i // 4}") for i in range(200)]
    corpus = split_texts(records("toxic", 30) + wiki, seed=0)
    places = {
        (r.document, split)
        for split, rows in corpus.records.items()
        for r in rows
        if r.kind == "wiki"
    }
    assert len(places) == 50


def test_spans_met_in_another_split_are_not_unseen():
    toxic = [
        TextRecord(f"you {'same' if i % 2 else f'word{i}'} {i}", "toxic", ((4, 8),))
        for i in range(100)
    ]
    toxic = [
        TextRecord(r.text, "toxic", ((4, 4 + len(r.text.split()[1])),)) for r in toxic
    ]
    corpus = split_texts(toxic + records("neutral", 20), seed=0)
    for record in corpus.records["heldout"]:
        if record.kind == "toxic":
            assert record.unseen == ("same" not in record.text)


def test_texts_that_share_five_words_with_another_split_are_not_unseen():
    copied = [TextRecord(f"one two three four five {i}", "toxic") for i in range(40)]
    own = [TextRecord(f"w{i} x{i} y{i} z{i} v{i}", "toxic") for i in range(40)]
    corpus = split_texts([*copied, *own, *records("wiki", 20)], seed=0)
    for record in corpus.records["heldout"]:
        assert record.unseen == (not record.text.startswith("one two"))


def test_data_without_toxic_or_without_other_texts_are_refused():
    with pytest.raises(UserError, match="must hold toxic texts"):
        split_texts(records("neutral", 50), seed=0)
    with pytest.raises(UserError, match="must hold texts to retain"):
        split_texts(records("toxic", 50), seed=0)
    with pytest.raises(UserError, match="five splits, got 2"):
        split_texts(records("toxic", 2) + records("neutral", 50), seed=0)
