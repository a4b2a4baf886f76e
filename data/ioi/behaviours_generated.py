"""Texts of two further behaviours: induction and the comparison of years.

Induction: C. Olsson et al. (2022), "In-context Learning and Induction Heads",
https://arxiv.org/abs/2209.11895. Years: M. Hanna, O. Liu and A. Variengien (2023), "How
does GPT-2 compute greater-than?", https://arxiv.org/abs/2305.00586.
"""

import random

from circuitcut.data.ioi.records import IoiRecord
from circuitcut.data.ioi.words import OBJECTS, PLACES, PLAIN_SLOTS

EVENTS = ("war", "siege", "reign", "famine", "strike", "voyage", "truce", "drought")
CENTURIES = range(11, 20)
LAST_YEAR = 98
REPEATED = (4, 8)
"""Smallest and largest number of repeated words."""
WORDS = tuple(dict.fromkeys([*OBJECTS, *PLACES, *PLAIN_SLOTS["material"]]))


def induction_text(rng: random.Random) -> IoiRecord:
    """A random sequence of words, written twice; the second half is predictable."""
    words = rng.sample(WORDS, rng.randint(*REPEATED))
    return IoiRecord(" ".join([*words, *words]), "copy")


def years_text(rng: random.Random) -> IoiRecord:
    """A sentence with a span of years within a century; the end is after the start."""
    century, start = rng.choice(CENTURIES), rng.randint(2, LAST_YEAR)
    end = rng.randint(start + 1, LAST_YEAR + 1)
    text = f"{years_prompt(rng.choice(EVENTS), century, start)} {end:02d}."
    return IoiRecord(text, "text")


def years_prompt(event: str, century: int, start: int) -> str:
    """The text before the last two digits; a correct end is above `start`."""
    return (
        f"The {event} lasted from the year {century} {start:02d} to the year {century}"
    )
