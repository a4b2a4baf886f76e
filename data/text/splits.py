"""Split a user's texts by a hash of text or document, and mark the unseen ones."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from circuitcut.data.text.records import TEXT_KINDS, TextCorpus, TextRecord
from circuitcut.storage.errors import UserError

# share and largest number of the texts of a kind; `base` has the rest
SPLIT_SHARES = {
    "heldout": (0.15, 600),
    "tune": (0.1, 300),
    "relearn": (0.12, 2000),
    "mask": (0.2, 4000),
}
FEWEST = 6
"""Texts of a kind that fill five splits, each a document of its own."""
SPLITS = ("base", "mask", "tune", "relearn", "heldout")
RUN_WORDS = 5


def split_texts(records: Sequence[TextRecord], *, seed: int) -> TextCorpus:
    """Five disjoint splits; documents of each kind are distributed by their hash.

    A held-out text is unseen when none of its marked spans occurs in another split. For
    a text without spans, none of its sequences of five words may occur there.

    Raises:
        UserError: When a split has no toxic text or no text to retain.
    """
    by_split: dict[str, list[TextRecord]] = {split: [] for split in SPLITS}
    for kind in TEXT_KINDS:
        _distribute([r for r in records if r.kind == kind], by_split, seed)
    for split, texts in by_split.items():
        for name, toxic in (("toxic texts", True), ("texts to retain", False)):
            if not any((record.kind == "toxic") == toxic for record in texts):
                n = sum((record.kind == "toxic") == toxic for record in records)
                raise UserError(
                    f"the data must hold {name} for five splits, got {n} of them and "
                    f"none for {split!r}; give at least {FEWEST} of each, or "
                    "--retain_data"
                )
    heldout = by_split.pop("heldout")
    rest = [record for texts in by_split.values() for record in texts]
    splits = {split: tuple(texts) for split, texts in by_split.items()}
    return TextCorpus(splits | {"heldout": tuple(_mark_unseen(heldout, rest))})


def split_retained(
    records: Sequence[TextRecord], *, seed: int
) -> dict[str, list[TextRecord]]:
    """Further texts to retain in five disjoint splits; a document stays in one split.

    Raises:
        UserError: When a split has none.
    """
    by_split: dict[str, list[TextRecord]] = {split: [] for split in SPLITS}
    _distribute(records, by_split, seed)
    empty = [split for split, texts in by_split.items() if not texts]
    if empty:
        raise UserError(
            f"the retained text must fill five splits, got {len(records)} texts and "
            f"none for {', '.join(empty)}; give at least 10 documents"
        )
    return by_split


def _distribute(
    records: Sequence[TextRecord], by_split: dict[str, list[TextRecord]], seed: int
) -> None:
    documents: dict[str, list[TextRecord]] = {}
    for record in records:
        documents.setdefault(record.document or record.text, []).append(record)
    ordered = iter(sorted(documents, key=lambda name: _digest(name, seed)))
    for split, (share, most) in SPLIT_SHARES.items():
        room = min(round(share * len(records)), most)
        while room > 0 and (name := next(ordered, None)) is not None:
            by_split[split] += documents[name]
            room -= len(documents[name])
    for name in ordered:
        by_split["base"] += documents[name]


def _digest(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def _mark_unseen(
    heldout: Sequence[TextRecord], rest: Sequence[TextRecord]
) -> Iterator[TextRecord]:
    seen = {
        entity
        for record in rest
        if record.kind != "wiki"
        for entity in _entities(record)
    }
    for record in heldout:
        unseen = record.kind == "wiki" or seen.isdisjoint(_entities(record))
        yield replace(record, unseen=unseen)


def _entities(record: TextRecord) -> Iterator[str]:
    if record.spans:
        for start, end in record.spans:
            yield record.text[start:end].strip().lower()
        return
    words = record.text.lower().split()
    for first in range(max(1, len(words) - RUN_WORDS + 1)):
        yield " ".join(words[first : first + RUN_WORDS])
