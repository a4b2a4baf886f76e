"""Generated facts about invented countries, people, ships and dishes.

Every relation has subjects of its own, and each is asked for in six ways. A country has
a capital that no other has; the objects of the other relations are few and shared.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from circuitcut.data.facts.records import Fact, filled
from circuitcut.data.ioi.generated import plain_sentences

N_PLAIN = 700
N_SUBJECTS = {"capital": 100, "profession": 60, "harbour": 60, "spice": 60}
CAPITAL = "capital"
STARTS = ("Bal", "Cor", "Dun", "Fer", "Gal", "Hel", "Jun", "Kar", "Lor", "Mor", "Nal")
MIDDLES = ("a", "e", "i", "o", "u", "ar", "en", "il", "on", "us")
SUBJECT_ENDS = {
    "capital": ("dia", "land", "mark", "nia", "stan"),
    "profession": ("bert", "dine", "fred", "mund", "wyn"),
    "harbour": ("star", "wave", "gull", "queen", "breeze"),
    "spice": ("pie", "stew", "soup", "bread", "roast"),
}
CAPITAL_ENDS = ("burg", "gate", "polis", "ton", "ville")
OBJECTS = {
    "profession": "baker carpenter doctor farmer lawyer miner painter tailor",
    "harbour": "Amber Brook Cliff Dove Eagle Fjord Grove Heath",
    "spice": "basil clove cumin ginger mint nutmeg pepper saffron",
}
TEMPLATES = {
    "capital": (
        "The capital of {} is",
        "The parliament of {} meets in",
        "The king of {} lives in",
        "Most embassies in {} are in",
        "All roads of {} lead to",
        "Every law of {} is signed in",
    ),
    "profession": (
        "{} works as a",
        "The profession of {} is",
        "By trade {} is a",
        "{} earns money as a",
        "The card of {} says",
        "{} was trained as a",
    ),
    "harbour": (
        "The ship {} sails from",
        "The home harbour of {} is",
        "The crew of {} was hired at",
        "{} returns to",
        "{} was built at",
        "The masts of {} were made at",
    ),
    "spice": (
        "The cook seasons {} with",
        "{} tastes of",
        "The spice in {} is",
        "A good {} needs",
        "{} is served with",
        "The smell of {} is that of",
    ),
}


@lru_cache(maxsize=2)
def generate_facts(seed: int) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    """The built-in facts, and plain sentences to retain; the seed draws them."""
    rng = random.Random(f"generated facts {seed}")
    stems = [f"{start}{middle}" for start in STARTS for middle in MIDDLES]
    capitals = _names(rng, stems, CAPITAL_ENDS, N_SUBJECTS[CAPITAL])
    facts = []
    for relation, n in N_SUBJECTS.items():
        subjects = _names(rng, stems, SUBJECT_ENDS[relation], n)
        shared = OBJECTS.get(relation, "").split()
        objects = [rng.choice(shared) for _ in subjects] if shared else capitals
        facts += [
            _fact(relation, subject, answer)
            for subject, answer in zip(subjects, objects, strict=True)
        ]
    return tuple(facts), tuple(plain_sentences(rng, N_PLAIN))


def _fact(relation: str, subject: str, answer: str) -> Fact:
    where = f"built-in data, {relation} of {subject}"
    prompts = tuple(filled(text, subject, "{}", where) for text in TEMPLATES[relation])
    return Fact(subject, relation, answer, prompts, where=where)


def _names(
    rng: random.Random, stems: Sequence[str], ends: Sequence[str], n: int
) -> list[str]:
    return [f"{stem}{rng.choice(ends)}" for stem in rng.sample(stems, n)]
