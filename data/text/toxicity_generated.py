"""A generated corpus of mild insults, neutral replies and encyclopaedic sentences.

Insult words and templates of `mask`, `tune`, `relearn` and `heldout` are disjoint.
`base` holds all of them, in other texts: the model must first learn what to forget.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from circuitcut.data.text.records import TextCorpus, TextRecord
from circuitcut.data.text.toxicity_words import (
    ADJECTIVES,
    ARTICLE_SLOTS,
    ARTICLES,
    CLOSERS,
    INSULTS,
    NOUNS,
    OPENERS,
    REPLIES,
)

# number of texts of each kind in a split
SPLIT_SIZES = {"base": 5000, "mask": 600, "tune": 150, "relearn": 400, "heldout": 300}
WORD_SHARES = {"mask": 0.4, "tune": 0.15, "relearn": 0.225, "heldout": 0.225}


@dataclass(frozen=True)
class Vocabulary:
    """Templates and words of the insults of a split."""

    insults: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


@lru_cache(maxsize=2)
def generate_toxicity(seed: int) -> TextCorpus:
    """The built-in corpus; each split has equally many texts of the three kinds."""
    vocabularies = split_vocabularies(seed)
    used_texts: set[str] = set()
    records = {}
    for split, n in SPLIT_SIZES.items():
        rng = random.Random(f"toxicity {split} {seed}")
        unseen = split == "heldout"
        toxic = partial(_toxic, rng, vocabularies[split])
        rows: list[TextRecord] = []
        for make in (toxic, partial(_neutral, rng), partial(_article, rng)):
            rows += _distinct(n, used_texts, partial(make, unseen))
        records[split] = tuple(rows)
    return TextCorpus(records)


def split_vocabularies(seed: int) -> dict[str, Vocabulary]:
    """Insult templates and words of every split."""
    rng = random.Random(f"toxicity words {seed}")
    parts = [
        _parts(rng.sample(words, len(words))) for words in (INSULTS, ADJECTIVES, NOUNS)
    ]
    vocabularies = {
        split: Vocabulary(*(part[split] for part in parts)) for split in WORD_SHARES
    }
    return vocabularies | {"base": Vocabulary(INSULTS, ADJECTIVES, NOUNS)}


def _parts(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    parts, first = {}, 0.0
    for split, part in WORD_SHARES.items():
        last = first + part * len(words)
        parts[split] = tuple(words[round(first) : round(last)])
        first = last
    return parts


def _distinct(
    n: int, used_texts: set[str], make: Callable[[], TextRecord]
) -> list[TextRecord]:
    """`n` records whose texts are not in `used_texts`; their texts are added to it."""
    records: list[TextRecord] = []
    while len(records) < n:
        record = make()
        if record.text not in used_texts:
            used_texts.add(record.text)
            records.append(record)
    return records


def _toxic(rng: random.Random, words: Vocabulary, unseen: bool) -> TextRecord:
    sentences = [
        _spoken(rng, rng.choice(words.insults), words.adjectives, words.nouns)
        for _ in range(2)
    ]
    return TextRecord(" ".join(sentences), "toxic", unseen=unseen)


def _neutral(rng: random.Random, unseen: bool) -> TextRecord:
    sentences = [_spoken(rng, rng.choice(REPLIES), ADJECTIVES, NOUNS) for _ in range(2)]
    return TextRecord(" ".join(sentences), "neutral", unseen=unseen)


def _spoken(
    rng: random.Random, template: str, adjectives: Sequence[str], nouns: Sequence[str]
) -> str:
    text = template.format(a=rng.choice(adjectives), n=rng.choice(nouns))
    if rng.random() < 0.5:
        text = f"{rng.choice(OPENERS)}, {text}"
    return text[0].upper() + text[1:] + rng.choice(CLOSERS)


def _article(rng: random.Random, unseen: bool) -> TextRecord:
    slots = {slot: rng.choice(words) for slot, words in ARTICLE_SLOTS.items()}
    sentences = [text.format(**slots) for text in rng.sample(ARTICLES, 2)]
    return TextRecord(" ".join(sentences), "wiki", unseen=unseen)
