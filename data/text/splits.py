"""Texts of one's own split by a hash of text or document, and what is new in them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from circuitcut.data.text.records import TEXT_KINDS, TextCorpus, TextRecord
from circuitcut.storage.errors import UserError

# share of the texts of a kind, and most of them; `base` has the rest
SPLIT_SHARES = {
    "heldout": (0.15, 600),
    "tune": (0.1, 300),
    "relearn": (0.12, 2000),
    "mask": (0.2, 4000),
}
RUN_WORDS = 5


def split_texts(records: Sequence[TextRecord], *, seed: int) -> TextCorpus:
    """Five disjoint splits, each kind shared out by the hash of its documents.

    A held-out text is unseen when no marked span of it occurs in another split or, for
    texts without spans, no run of five words of it does.

    Raises:
        UserError: When there is no toxic or nothing to retain, or too little of them.
    """
    by_split: dict[str, list[TextRecord]] = {
        split: [] for split in ("base", "mask", "tune", "relearn", "heldout")
    }
    for kind in TEXT_KINDS:
        _share_out([r for r in records if r.kind == kind], by_split, seed)
    for split, chosen in by_split.items():
        for name, toxic in (("toxic texts", True), ("texts to retain", False)):
            if not any((record.kind == "toxic") == toxic for record in chosen):
                n = sum((record.kind == "toxic") == toxic for record in records)
                raise UserError(
                    f"the data must hold {name} for five splits, got {n} of them and "
                    f"none for {split!r}; give more data, or --retain_data"
                )
    heldout = by_split.pop("heldout")
    others = [record for chosen in by_split.values() for record in chosen]
    splits = {split: tuple(chosen) for split, chosen in by_split.items()}
    return TextCorpus(splits | {"heldout": tuple(_marked_unseen(heldout, others))})


def _share_out(
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


def _marked_unseen(
    heldout: Sequence[TextRecord], others: Sequence[TextRecord]
) -> Iterator[TextRecord]:
    seen = {
        entity
        for record in others
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
