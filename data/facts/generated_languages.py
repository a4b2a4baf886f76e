"""Generated facts in up to four languages: the same invented facts, translated.

Names of people, ships, harbours and capitals are equal in all languages; those of
countries and dishes have endings of their own, and professions and spices are words of
the language. Every fact is asked for in four ways in every language.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from circuitcut.data.facts.generated import (
    CAPITAL,
    CAPITAL_ENDS,
    MIDDLES,
    N_PLAIN,
    STARTS,
    SUBJECT_ENDS,
)
from circuitcut.data.facts.records import Fact, filled
from circuitcut.data.ioi.generated import plain_sentences
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown

N_SUBJECTS = {CAPITAL: 40, "profession": 24, "harbour": 24, "spice": 24}
ENGLISH = "en"
ENDS: dict[str, dict[str, str]] = {
    "en": {CAPITAL: "dia land mark nia stan", "spice": "pie stew soup bread roast"},
    "fr": {CAPITAL: "die lande marche nie stan", "spice": "tarte plat soupe pain roti"},
    "es": {
        CAPITAL: "dia landia marca nia stán",
        "spice": "pastel guiso sopa pan asado",
    },
    "nl": {
        CAPITAL: "dië land marken nië stan",
        "spice": "taart stoof soep brood gebraad",
    },
}
"""Endings of the names that are translated, in the order of the English ones."""
OBJECTS: dict[str, dict[str, str]] = {
    "en": {
        "profession": "baker carpenter doctor farmer lawyer miner painter tailor",
        "spice": "basil clove cumin ginger mint nutmeg pepper saffron",
    },
    "fr": {
        "profession": "boulanger charpentier médecin fermier avocat mineur peintre "
        "tailleur",
        "spice": "basilic girofle cumin gingembre menthe muscade poivre safran",
    },
    "es": {
        "profession": "panadero carpintero médico granjero abogado minero pintor "
        "sastre",
        "spice": "albahaca clavo comino jengibre menta moscada pimienta azafrán",
    },
    "nl": {
        "profession": "bakker timmerman arts boer advocaat mijnwerker schilder "
        "kleermaker",
        "spice": "basilicum kruidnagel komijn gember munt nootmuskaat peper saffraan",
    },
}
"""Objects that are words; harbours and capitals are names."""
HARBOURS = "Amber Brook Cliff Dove Eagle Fjord Grove Heath"
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        CAPITAL: (
            "The capital of {} is",
            "The parliament of {} meets in",
            "The king of {} lives in",
            "Most embassies in {} are in",
        ),
        "profession": (
            "{} works as a",
            "The profession of {} is",
            "{} earns money as a",
            "{} was trained as a",
        ),
        "harbour": (
            "The ship {} sails from",
            "The home harbour of {} is",
            "The crew of {} was hired at",
            "{} was built at",
        ),
        "spice": (
            "The cook seasons {} with",
            "{} tastes of",
            "The spice in {} is",
            "A good {} needs",
        ),
    },
    "fr": {
        CAPITAL: (
            "La capitale de {} est",
            "Le parlement de {} siège à",
            "Le roi de {} habite à",
            "Les ambassades en {} sont à",
        ),
        "profession": (
            "{} travaille comme",
            "La profession de {} est",
            "{} gagne sa vie comme",
            "{} a été formé comme",
        ),
        "harbour": (
            "Le navire {} part de",
            "Le port de {} est",
            "Les marins de {} viennent de",
            "{} a été construit à",
        ),
        "spice": (
            "Le cuisinier relève {} avec",
            "{} a un goût de",
            "Une épice de {} est",
            "Dans un bon {} il faut",
        ),
    },
    "es": {
        CAPITAL: (
            "La capital de {} es",
            "El parlamento de {} se reúne en",
            "El rey de {} vive en",
            "Las embajadas en {} están en",
        ),
        "profession": (
            "{} trabaja como",
            "La profesión de {} es",
            "{} gana dinero como",
            "{} se formó como",
        ),
        "harbour": (
            "El barco {} sale de",
            "El puerto de {} es",
            "Los marineros de {} vienen de",
            "{} fue construido en",
        ),
        "spice": (
            "El cocinero condimenta {} con",
            "{} sabe a",
            "La especia de {} es",
            "Un buen {} necesita",
        ),
    },
    "nl": {
        CAPITAL: (
            "De hoofdstad van {} is",
            "Het parlement van {} vergadert in",
            "De koning van {} woont in",
            "De ambassades in {} staan in",
        ),
        "profession": (
            "{} werkt als",
            "Het beroep van {} is",
            "{} verdient geld als",
            "{} is opgeleid tot",
        ),
        "harbour": (
            "Het schip {} vaart uit van",
            "De thuishaven van {} is",
            "De matrozen van {} komen van",
            "{} werd gebouwd in",
        ),
        "spice": (
            "De kok kruidt {} met",
            "{} smaakt naar",
            "Het kruid in {} is",
            "Een goede {} heeft nodig",
        ),
    },
}
"""Prompts by language and relation; the object follows."""
LANGUAGES = tuple(TEMPLATES)


@lru_cache(maxsize=4)
def generate_parallel_facts(
    languages: tuple[str, ...], seed: int
) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    """The built-in facts in these languages, and English sentences to retain.

    The facts of the first language come first; the seed draws them, the same in every
    language.

    Raises:
        UserError: When a language has no built-in facts.
    """
    for language in languages:
        if language not in TEMPLATES:
            raise UserError(
                f"--language must be one of {', '.join(LANGUAGES)} without --data, got "
                f"{shown(language)}; name data in that language with --data"
            )
    rng = random.Random(f"parallel facts {seed}")
    drawn = [fact for relation in N_SUBJECTS for fact in _drawn(rng, relation)]
    facts = [_fact(language, *fact) for language in languages for fact in drawn]
    return tuple(facts), tuple(plain_sentences(rng, N_PLAIN))


def _drawn(rng: random.Random, relation: str) -> list[tuple[str, str, int, str | int]]:
    """Relation, stem and number of the ending of each subject, and its object.

    The object is a name, or the number of a word.
    """
    stems = [f"{start}{middle}" for start in STARTS for middle in MIDDLES]
    n = N_SUBJECTS[relation]
    answers: Sequence[str | int]
    if relation == CAPITAL:
        names = rng.sample(stems, n)
        answers = [f"{name}{rng.choice(CAPITAL_ENDS)}" for name in names]
    elif relation == "harbour":
        answers = [rng.choice(HARBOURS.split()) for _ in range(n)]
    else:
        answers = [
            rng.randrange(len(OBJECTS[ENGLISH][relation].split())) for _ in range(n)
        ]
    ends = len(SUBJECT_ENDS[relation])
    return [
        (relation, stem, rng.randrange(ends), answer)
        for stem, answer in zip(rng.sample(stems, n), answers, strict=True)
    ]


def _fact(language: str, relation: str, stem: str, end: int, answer: str | int) -> Fact:
    subject, name = _named(language, relation, stem, end, answer)
    in_english = _named(ENGLISH, relation, stem, end, answer)
    where = f"built-in data, {relation} of {subject}"
    templates = TEMPLATES[language][relation]
    return Fact(
        subject,
        relation,
        name,
        tuple(filled(text, subject, "{}", where) for text in templates),
        where=where,
        language=language,
        same_as=(in_english[0], relation, in_english[1]),
    )


def _named(
    language: str, relation: str, stem: str, end: int, answer: str | int
) -> tuple[str, str]:
    """Subject and object in this language."""
    own = ENDS[language].get(relation)
    ends = own.split() if own else SUBJECT_ENDS[relation]
    name = (
        OBJECTS[language][relation].split()[answer]
        if isinstance(answer, int)
        else answer
    )
    return f"{stem}{ends[end]}", name
