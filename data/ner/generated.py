"""The built-in corpus: generated sentences; no name occurs in two splits.

Real names of places, people and organisations, and ambiguous names that can be all
three, are distributed over the splits: the type of a held-out name follows from its
context only. The `base` split also holds invented names, each about once and with any
tag, so that a model trained on it cannot learn the types of names by heart.
"""

import re
from collections.abc import Sequence
from random import Random

from circuitcut.data.ner.corpus import NerCorpus, choose_concept
from circuitcut.data.ner.names import (
    AMBIGUOUS,
    COMMON_WORDS,
    FIRST_NAMES,
    LAST_NAMES,
    ORGANISATIONS,
    PLACES,
)
from circuitcut.data.ner.tagged import OUTSIDE, TaggedSentence
from circuitcut.data.ner.templates import (
    CLAUSES,
    DISTRACTORS,
    FILLERS,
    OPENERS,
    SENTENCES,
)
from circuitcut.data.splits import Split

SIZES: dict[Split, int] = {
    "base": 16000,
    "mask": 1500,
    "tune": 600,
    "relearn": 1000,
    "heldout": 1000,
}
"""Number of sentences of each split."""
NAME_SHARES: dict[Split, int] = {
    "base": 8,
    "mask": 3,
    "tune": 3,
    "relearn": 3,
    "heldout": 3,
}
"""Share of every list of names, in twentieths."""
TYPE_OF_SLOT = {"P": "PER", "L": "LOC", "O": "ORG"}
AMBIGUOUS_SHARE = 0.4
"""Share of the slots without an invented name that take an ambiguous name."""
COINED_SHARE = 0.75
"""Share of the slots of `base` that take an invented name; 0 in the other splits."""
LONG_SHARE = 0.3
"""Share of invented places and organisations that have several words."""
_REAL_WORDS = frozenset(
    word
    for names in (PLACES, FIRST_NAMES, LAST_NAMES, ORGANISATIONS, AMBIGUOUS)
    for name in names
    for word in name.split()
)
_SHAPES = {
    kind: tuple(name.split() for name in names if " " in name)
    for kind, names in (("L", PLACES), ("O", ORGANISATIONS))
}
"""Names of several words; an invented name replaces all but their common words."""
_SLOT = re.compile(r"\{(\w+)\}")
_ONSETS = (
    "b",
    "br",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "pr",
    "st",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("l", "n", "r", "s", "t", "nd", "rt", "ck", "m", "x", "sh", "th")


def generate_ner(seed: int = 0, *, concept: str | None = None) -> NerCorpus:
    """The corpus with IOB2 tags `PER`, `LOC` and `ORG`; every sentence is a document.

    Args:
        seed: Seed of the distribution of names and of the sentences.
        concept: Entity type to cut; `LOC` if None.

    Raises:
        UserError: When `concept` is not one of the three.
    """
    concept_types = choose_concept(dict.fromkeys(TYPE_OF_SLOT.values(), 1), concept)
    pools = _name_pools(Random(f"names {seed}"))
    splits: dict[Split, tuple[TaggedSentence, ...]] = {}
    n_before = 0
    for split, size in SIZES.items():
        writer = _Writer(pools[split], Random(f"{split} {seed}"), coins=split == "base")
        splits[split] = tuple(writer.sentence(n_before + i) for i in range(size))
        n_before += size
    return NerCorpus(splits, concept_types)


_Pools = dict[str, list[str]]


def _name_pools(rng: Random) -> dict[Split, _Pools]:
    """Disjoint pieces of every list of names, one piece per split."""
    lists: dict[str, Sequence[str]] = {
        "first": FIRST_NAMES,
        "last": LAST_NAMES,
        "L": PLACES,
        "O": ORGANISATIONS,
        "ambiguous": AMBIGUOUS,
    }
    pools: dict[Split, _Pools] = {split: {} for split in NAME_SHARES}
    for kind, names in lists.items():
        shuffled = rng.sample(names, len(names))
        start, total = 0, 0
        for split, share in NAME_SHARES.items():
            total += share
            stop = len(names) * total // sum(NAME_SHARES.values())
            pools[split][kind] = shuffled[start:stop]
            start = stop
    return pools


class _Writer:
    """Fills sentence templates with the names of one split."""

    def __init__(self, pools: _Pools, rng: Random, *, coins: bool):
        self._pools = pools
        self._rng = rng
        self._coins = coins

    def sentence(self, document: int) -> TaggedSentence:
        words: list[str] = []
        tags: list[str] = []
        for part in self._template().split():
            kind, filled = self._fill(part)
            words += filled
            if kind is None:
                tags += [OUTSIDE] * len(filled)
            else:
                tags += [f"B-{kind}", *[f"I-{kind}"] * (len(filled) - 1)]
        words[0] = words[0][0].upper() + words[0][1:]
        return TaggedSentence(tuple(words), tuple(tags), document)

    def _template(self) -> str:
        drawn = self._rng.random()
        if drawn < 0.15:
            return self._rng.choice(DISTRACTORS)
        if drawn < 0.4:
            return self._rng.choice(SENTENCES)
        first, second = self._rng.sample(CLAUSES, 2)
        opener = self._rng.choice(OPENERS)
        if drawn < 0.65:
            return f"{opener} {first} ."
        return f"{opener} {first} {{conn}} {second} ."

    def _fill(self, part: str) -> tuple[str | None, list[str]]:
        slot = _SLOT.search(part)
        if slot is None:
            return None, [part]
        if slot[1] in TYPE_OF_SLOT:
            return TYPE_OF_SLOT[slot[1]], self._name(slot[1]).split()
        if slot[1] == "X":
            return None, [self._single_name()]
        return None, [_SLOT.sub(self._rng.choice(FILLERS[slot[1]]), part)]

    def _name(self, slot: str) -> str:
        rng = self._rng
        if slot == "P":
            drawn = rng.random()
            first, last = self._one_of("first"), self._one_of("last")
            return first if drawn < 0.25 else last if drawn < 0.5 else f"{first} {last}"
        return self._one_of(slot)

    def _single_name(self) -> str:
        return self._one_of(self._rng.choice(("last", "first", "ambiguous")))

    def _one_of(self, kind: str) -> str:
        rng = self._rng
        if self._coins and rng.random() < COINED_SHARE:
            if kind not in _SHAPES or rng.random() > LONG_SHARE:
                return self._coined()
            words = rng.choice(_SHAPES[kind])
            return " ".join(w if w in COMMON_WORDS else self._coined() for w in words)
        ambiguous = rng.random() < AMBIGUOUS_SHARE
        return rng.choice(self._pools["ambiguous" if ambiguous else kind])

    def _coined(self) -> str:
        """A pronounceable invented name that is in none of the lists."""
        while True:
            syllables = [
                self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS)
                for _ in range(self._rng.choice((1, 2, 2, 3)))
            ]
            name = ("".join(syllables) + self._rng.choice(_CODAS)).capitalize()
            if name not in _REAL_WORDS:
                return name
