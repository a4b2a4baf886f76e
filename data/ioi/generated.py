"""A generated corpus in which the second name of a pair has to be told from the first.

After Wang et al. (2022), "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small", https://arxiv.org/abs/2211.00593, with templates of our
own: each is used in both orders of the names (ABBA, BABA) and with three different
names (ABC), where no answer is right. The base mixture teaches a small model from
nothing to do the task with names it has met only in other text.
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
# prompts, plain texts and copying texts of each split; names of each split's prompts
SPLIT_SIZES = {
    "mask": (1000, 1000, 0),
    "tune": (200, 200, 100),
    "relearn": (600, 300, 0),
    "heldout": (400, 300, 100),
}
NAME_SHARES = {"mask": 0.5, "tune": 0.2, "relearn": 0.3}


@lru_cache(maxsize=2)
def generate_ioi(seed: int, *, several: bool = False) -> IoiCorpus:
    """The built-in corpus; prompts of different splits but `base` share no name.

    Args:
        several: The other texts hold two more behaviours, induction (of kind `copy`)
            and spans of years (of kind `text`).
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
    """Half prompts with `known` names (a tenth of them ABC), the rest other text.

    Three quarters of the rest copy names of both groups, every second one of them with
    held-out names only, so that a name is met often without any prompt; one quarter
    copies nothing. With `several` behaviours three eighths of all are prompts, two
    repeat words, and one each copies names, spans years and copies nothing.
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

    The counterpart has three other names where there are as many.
    """
    template = rng.randrange(len(TEMPLATES))
    first, second = rng.sample(names, 2)
    subject, io = (first, second) if rng.random() < 0.5 else (second, first)
    scene = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    others = rng.sample([name for name in names if name not in (io, subject)], 3)
    text = TEMPLATES[template].format(X=first, Y=second, Z=subject, **scene)
    corrupted = TEMPLATES[template].format(
        X=others[0], Y=others[1], Z=others[2], **scene
    )
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


def _sentence(rng: random.Random) -> str:
    slots = {slot: rng.choice(words) for slot, words in PLAIN_SLOTS.items()}
    return rng.choice(PLAIN_TEMPLATES).format(
        place=rng.choice(PLACES), object=rng.choice(OBJECTS), **slots
    )
