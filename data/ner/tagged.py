"""Sentences with one tag per word, and the entities that the tags encode."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
_OUTSIDE_TAGS = frozenset({"O", "o", "N/A", "_"})
_PREFIXES = {
    "B": "B-",
    "S": "B-",
    "U": "B-",
    "I": "I-",
    "E": "I-",
    "L": "I-",
    "M": "I-",
}
Span = tuple[str, int, int]
"""Entity type, first word, one past the last word."""


@dataclass(frozen=True)
class TaggedSentence:
    """Words, one tag per word, and the number of their document."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int


def entity_type(tag: str) -> str | None:
    """`LOC` for `B-LOC`, `I-LOC` and `LOC`; None for the tag `O`."""
    if tag == OUTSIDE:
        return None
    return tag[2:] if tag[:2] in ("B-", "I-") else tag


def spans(tags: Sequence[str]) -> list[Span]:
    """Entities of one sentence, decoded leniently as in `conlleval`.

    An entity starts at `B-` and wherever the type changes. IO tags, IOB2 tags and a
    model's ill-formed IOB2 (an `I-` after `O`) can therefore all be decoded.
    """
    entities: list[Span] = []
    start, current = 0, None
    for index, tag in enumerate((*tags, OUTSIDE)):
        kind = entity_type(tag)
        if current is not None and (kind != current or tag[:2] == "B-"):
            entities.append((current, start, index))
            current = None
        if kind is not None and current is None:
            start, current = index, kind
    return entities


def entity_types(tags: Iterable[str]) -> list[str]:
    """The types that occur among `tags`, sorted."""
    return sorted({kind for tag in tags if (kind := entity_type(tag)) is not None})


def surface_forms(sentence: TaggedSentence) -> set[str]:
    """Lower-case text of every entity of a sentence."""
    return {
        " ".join(sentence.words[start:stop]).lower()
        for _, start, stop in spans(sentence.tags)
    }


def normalised(tags: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Tags of a corpus in one of two schemes: IOB2 if any starts with `B-`, else IO.

    IOB1, IOBES and BILOU become IOB2 (every entity starts with `B-`). Without a `B-`
    the tags do not change (IO: `I-LOC`, `LOC` or `location` on each word of an entity).
    """
    plain = [[_plain(tag) for tag in sentence] for sentence in tags]
    if not any(tag[:2] == "B-" for sentence in plain for tag in sentence):
        return [tuple(sentence) for sentence in plain]
    return [_iob2(sentence) for sentence in plain]


def _plain(tag: str) -> str:
    if tag in _OUTSIDE_TAGS:
        return OUTSIDE
    if len(tag) > 2 and tag[1] == "-" and tag[0] in _PREFIXES:
        return _PREFIXES[tag[0]] + tag[2:]
    return tag


def _iob2(tags: list[str]) -> tuple[str, ...]:
    iob2 = [OUTSIDE] * len(tags)
    for kind, start, stop in spans(tags):
        iob2[start:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - start - 1)]
    return tuple(iob2)
