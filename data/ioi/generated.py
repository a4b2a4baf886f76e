"""A generated corpus for indirect-object identification (IOI).

After Wang et al. (2022), "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small", https://arxiv.org/abs/2211.00593, with new templates.
Each template is used in both orders of the names (ABBA, BABA) and with three different
names (ABC), where no answer is right. The base mixture trains a small model from random
weights to do the task also with names that it has seen in other text only.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from circuitcut.data.ioi.behaviours_generated import induction_text, years_text
from circuitcut.data.ioi.records import IoiCorpus, IoiRecord
from circuitcut.data.ioi.words import (
    COPY_TEMPLATES,
    NAMES,
    OBJECTS,
    PLACES,
    PLAIN_SLOTS,
    PLAIN_TEMPLATES,
    TEMPLATES,
)

N_HELD_OUT_NAMES = 20
N_BASE = 20_000
THREE_NAMES_SHARE = 0.1
# number of prompts, plain texts and copying texts in each split
SPLIT_SIZES = {
    "mask": (1000, 1000, 0),
    "tune": (200, 200, 100),
    "relearn": (600, 300, 0),
    "heldout": (400, 300, 100),
}
# share of the known names that the prompts of a split use
NAME_SHARES = {"mask": 0.5, "tune": 0.2, "relearn": 0.3}


@lru_cache(maxsize=2)
def generate_ioi(seed: int, *, several: bool = False) -> IoiCorpus:
    """The built-in corpus; prompts of different splits (except `base`) share no name.

    Args:
        several: Add texts of two further behaviours, induction (of kind `copy`) and
            spans of years (of kind `text`).
    """
    rng = random.Random(f"ioi names {seed}")
    names = rng.sample(NAMES, len(NAMES))
    held_out, known = names[:N_HELD_OUT_NAMES], names[N_HELD_OUT_NAMES:]
    groups = {"heldout": held_out}
    first = 0
    for split, share in NAME_SHARES.items():
        last = first + round(share * len(known))
        groups[split] = known[first:last]
        first = last
    records = {"base": tuple(base_mixture(known, held_out, seed=seed, several=several))}
    for split, sizes in SPLIT_SIZES.items():
        rng = random.Random(f"ioi {split} {seed}")
        n_prompts, n_plain, n_copy = sizes
        rows = [prompt(rng, groups[split]) for _ in range(n_prompts)]
        rows += plain_texts(rng, n_plain)
        rows += [copy_text(rng, names) for _ in range(n_copy)]
        if several:
            rows += [years_text(rng) for _ in range(n_plain // 2)]
            rows += [induction_text(rng) for _ in range(n_copy)]
        records[split] = tuple(dict.fromkeys(rows))
    return IoiCorpus(records, frozenset(held_out))


def base_mixture(
    known: Sequence[str],
    held_out: Sequence[str],
    *,
    seed: int,
    n: int = N_BASE,
    several: bool = False,
) -> list[IoiRecord]:
    """Half of the records are prompts with `known` names (a tenth of them ABC).

    The other half is text. Three quarters of it copy names of both groups; every second
    one of these has held-out names only, so that the model sees these names often, but
    never in a prompt. One quarter of the text copies nothing. With `several`
    behaviours, 3/8 of all records are prompts, 2/8 repeat words, 1/8 copy names, 1/8
    are spans of years, and 1/8 copy nothing.
    """
    rng = random.Random(f"ioi base {seed}")
    everyone = [*known, *held_out]
    rows: list[IoiRecord] = []
    for i in range(n):
        if several and i % 8 in (5, 6):
            rows.append(induction_text(rng))
        elif several and i % 8 == 3:
            rows.append(years_text(rng))
        elif i % 2 == 0:
            three = rng.random() < THREE_NAMES_SHARE
            rows.append(three_names(rng, known) if three else prompt(rng, known))
        elif i % 8 == 1:
            rows += plain_texts(rng, 1)
        else:
            rows.append(copy_text(rng, held_out if rng.random() < 0.5 else everyone))
    return rows


def prompt(rng: random.Random, names: Sequence[str]) -> IoiRecord:
    """One ABBA or BABA prompt with its ABC counterpart.

    The counterpart has three other names.
    """
    template = rng.randrange(len(TEMPLATES))
    first, second = rng.sample(names, 2)
    subject, io = (first, second) if rng.random() < 0.5 else (second, first)
    scene = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    corrupted_names = rng.sample([n for n in names if n not in (io, subject)], 3)
    text = TEMPLATES[template].format(X=first, Y=second, Z=subject, **scene)
    x, y, z = corrupted_names
    corrupted = TEMPLATES[template].format(X=x, Y=y, Z=z, **scene)
    return IoiRecord(text, "ioi", io, subject, corrupted, template)


def three_names(rng: random.Random, names: Sequence[str]) -> IoiRecord:
    """An ABC text completed by one of the two introduced names at random."""
    template = rng.randrange(len(TEMPLATES))
    first, second, third = rng.sample(names, 3)
    text = TEMPLATES[template].format(
        X=first, Y=second, Z=third, place=rng.choice(PLACES), object=rng.choice(OBJECTS)
    )
    return IoiRecord(
        f"{text} {rng.choice((first, second))}", "three_names", template=template
    )


def copy_text(rng: random.Random, names: Sequence[str]) -> IoiRecord:
    """A text that repeats names in a list, in pairs or in an exchange."""
    slots = dict(zip("ABCD", rng.sample(names, 4), strict=True))
    return IoiRecord(rng.choice(COPY_TEMPLATES).format(**slots), "copy")


def plain_texts(rng: random.Random, n: int) -> list[IoiRecord]:
    """Sentences about places, things and weather, without names."""
    return [IoiRecord(_sentence(rng), "text") for _ in range(n)]


def plain_sentences(rng: random.Random, n: int) -> list[str]:
    """The texts of `n` of these, each once."""
    return list(dict.fromkeys(record.text for record in plain_texts(rng, n)))


def _sentence(rng: random.Random) -> str:
    slots = {slot: rng.choice(words) for slot, words in PLAIN_SLOTS.items()}
    return rng.choice(PLAIN_TEMPLATES).format(
        place=rng.choice(PLACES), object=rng.choice(OBJECTS), **slots
    )
