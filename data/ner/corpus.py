"""Tagged sentences of every split, and the entity types that are the concept."""

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
"""Names of location types in data sets; the first one in the data is the concept."""
FEWEST = 10
"""Sentences of the concept that usually reach all five splits."""


@dataclass(frozen=True)
class NerCorpus:
    """Sentences by split, and their common label set."""

    splits: Mapping[Split, tuple[TaggedSentence, ...]]
    concept_types: tuple[str, ...]

    @cached_property
    def labels(self) -> list[str]:
        """Tags in the order of a classification head's logits, `O` first.

        If the data use IOB2, every type has both `B-` and `I-`.
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
        """Whether the sentence contains an entity of the concept."""
        return any(entity_type(tag) in self.concept_types for tag in sentence.tags)

    def unseen(self, split: Split) -> list[bool]:
        """For each sentence, whether none of its entities occurs in another split.

        Entities are compared as lower-case text; a sentence without entities is unseen.
        """
        seen_entities: set[str] = set()
        for other_split, sentences in self.splits.items():
            if other_split != split:
                seen_entities.update(*map(surface_forms, sentences))
        return [seen_entities.isdisjoint(surface_forms(s)) for s in self.splits[split]]

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
    """Split a user's sentences by group and choose the concept among their types.

    Raises:
        UserError: When the concept is not in the data, or is missing in a split.
    """
    types = Counter(
        kind
        for sentence in sentences
        for kind in {entity_type(tag) for tag in sentence.tags} - {None}
        if kind is not None
    )
    concept_types = choose_concept(types, concept)
    records = split_records(groups, sources=sources, seed=seed)
    splits = {
        split: tuple(sentences[record] for record in numbers)
        for split, numbers in records.items()
    }
    corpus = NerCorpus(splits, concept_types)
    for split, members in splits.items():
        if not any(map(corpus.has_concept, members)):
            n_with = sum(map(corpus.has_concept, sentences))
            raise UserError(
                f"split {split!r} ({len(members)} sentences) holds no entity of type "
                f"{', '.join(concept_types)}, of the {n_with} in the data; give more "
                f"(about {FEWEST}), or another --split_seed"
            )
    return corpus


def choose_concept(types: Mapping[str, int], concept: str | None) -> tuple[str, ...]:
    """The entity types that are the concept: `concept`, or by default locations.

    Args:
        types: Number of sentences with each type of the data.
        concept: Types separated by commas, upper or lower case, with or without `B-` or
            `I-`; None takes the type whose name means location.

    Raises:
        UserError: When a type is not in the data; the message lists the types.
    """
    listing = ", ".join(f"{kind} ({types[kind]} sentences)" for kind in sorted(types))
    if concept is not None:
        names = [name.strip() for name in concept.split(",") if name.strip()]
        by_name = {kind.lower(): kind for kind in types}
        plain = [(entity_type(name) or name).lower() for name in names]
        missing = [n for n, p in zip(names, plain, strict=True) if p not in by_name]
        if missing or not names:
            raise UserError(
                f"--concept must be an entity type of the data, got {concept!r}; "
                f"found: {listing or 'none'}"
            )
        return tuple(dict.fromkeys(by_name[p] for p in plain))
    for usual in LOCATION_TYPES:
        for kind in sorted(types):
            if kind.lower().split(":")[-1] == usual:
                return (kind,)
    raise UserError(
        "no entity type looks like a location; name one with --concept; found: "
        f"{listing or 'none'}"
    )
