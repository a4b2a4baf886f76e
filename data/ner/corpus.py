"""Tagged sentences of every split, and which of their entity types is the concept."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from circuitcut.data.ner.tagged import (
    OUTSIDE,
    TaggedSentence,
    entity_type,
    entity_types,
    surface_forms,
)
from circuitcut.data.splits import Source, Split, split_records
from circuitcut.storage.errors import UserError

LOCATION_TYPES = ("loc", "location", "locations", "gpe", "place", "geo-loc", "geo")
"""What data sets call locations, in the order in which a concept is guessed."""


@dataclass(frozen=True)
class NerCorpus:
    """Sentences by split, with the label set of all of them."""

    splits: Mapping[Split, tuple[TaggedSentence, ...]]
    concept_types: tuple[str, ...]

    @cached_property
    def labels(self) -> list[str]:
        """Tags in the order of a classification head's logits, `O` first.

        Every type has both `B-` and `I-` where the data use IOB2.
        """
        tags = {tag for s in self._sentences() for tag in s.tags} - {OUTSIDE}
        if any(tag.startswith("B-") for tag in tags):
            tags = {f"{b}-{kind}" for kind in entity_types(tags) for b in "BI"}
        ordered = sorted(tags, key=lambda tag: (entity_type(tag), tag))
        return [OUTSIDE, *ordered]

    def texts(self) -> list[str]:
        """Sentences of the `base` split, words joined by spaces."""
        return [" ".join(sentence.words) for sentence in self.splits["base"]]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every word, tag and document number."""
        digest = hashlib.sha256(repr(self.concept_types).encode())
        for split in sorted(self.splits):
            digest.update(split.encode())
            for sentence in self.splits[split]:
                digest.update(repr((sentence.words, sentence.tags)).encode())
                digest.update(repr(sentence.document).encode())
        return digest.hexdigest()

    def has_concept(self, sentence: TaggedSentence) -> bool:
        """Whether an entity of the concept stands in the sentence."""
        return any(entity_type(tag) in self.concept_types for tag in sentence.tags)

    def unseen(self, split: Split) -> list[bool]:
        """Whether no entity of each sentence occurs in any other split.

        Entities are compared as lower-case text; a sentence without any is unseen.
        """
        elsewhere: set[str] = set()
        for other, sentences in self.splits.items():
            if other != split:
                elsewhere.update(*map(surface_forms, sentences))
        return [elsewhere.isdisjoint(surface_forms(s)) for s in self.splits[split]]

    def _sentences(self) -> Iterable[TaggedSentence]:
        return (s for sentences in self.splits.values() for s in sentences)


def split_corpus(
    sentences: Sequence[TaggedSentence],
    groups: Sequence[int],
    sources: Sequence[Source],
    *,
    concept: str | None,
    seed: int,
) -> NerCorpus:
    """A user's sentences, split by group, with the concept found among their types.

    Raises:
        UserError: When the concept is not in the data, or not in one of the splits.
    """
    types = Counter(
        kind
        for sentence in sentences
        for kind in {entity_type(tag) for tag in sentence.tags} - {None}
        if kind is not None
    )
    chosen = choose_concept(types, concept)
    records = split_records(groups, sources=sources, seed=seed)
    splits = {
        split: tuple(sentences[record] for record in numbers)
        for split, numbers in records.items()
    }
    corpus = NerCorpus(splits, chosen)
    for split, members in splits.items():
        if not any(map(corpus.has_concept, members)):
            raise UserError(
                f"split {split!r} ({len(members)} sentences) holds no entity of type "
                f"{', '.join(chosen)}; give more data or another --split_seed"
            )
    return corpus


def choose_concept(types: Mapping[str, int], asked: str | None) -> tuple[str, ...]:
    """The entity types that are the concept: those asked for, or a guess at locations.

    Args:
        types: Sentences with each type found in the data.
        asked: Types separated by commas, in any case, with or without `B-` or `I-`.

    Raises:
        UserError: When a type is not in the data, listing those that are.
    """
    found = ", ".join(f"{kind} ({types[kind]} sentences)" for kind in sorted(types))
    if asked is not None:
        names = [name.strip() for name in asked.split(",") if name.strip()]
        by_name = {kind.lower(): kind for kind in types}
        plain = [(entity_type(name) or name).lower() for name in names]
        missing = [n for n, p in zip(names, plain, strict=True) if p not in by_name]
        if missing or not names:
            raise UserError(
                f"--concept must be an entity type of the data, got {asked!r}; found: "
                f"{found or 'none'}"
            )
        return tuple(dict.fromkeys(by_name[p] for p in plain))
    for usual in LOCATION_TYPES:
        for kind in sorted(types):
            if kind.lower().split(":")[-1] == usual:
                return (kind,)
    raise UserError(
        "no entity type looks like a location; name one with --concept; found: "
        f"{found or 'none'}"
    )
