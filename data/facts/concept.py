"""Which facts are the concept: a relation, those of subjects, or a list in a file."""

from collections.abc import Sequence
from pathlib import Path

from circuitcut.data.facts.records import Fact, relations_of
from circuitcut.data.facts.tables import column_of, text_of
from circuitcut.data.sampling import shuffled
from circuitcut.data.tables import read_tables
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown, shown_names

OF_SUBJECTS = "subject:"
BETWEEN = "|"
"""Separates several subjects or relations."""


def chosen_facts(
    facts: Sequence[Fact], concept: str | None
) -> tuple[list[Fact], list[Fact], str]:
    """The facts of the concept, all others, and the concept's name.

    Args:
        concept: A relation (`P36`), a part of its name that no other has, or several
            relations with `|` between them; `subject:France` or `subject:France|Peru`;
            or a table with a column subject, and with relation and object where a
            subject has several facts. None: the relation with the most facts.

    Raises:
        UserError: When it names nothing that the facts have; the message has what they
            have, or file and line of the fact that they have not.
    """
    if concept is None:
        numbers = relations_of(facts)
        concept = max(numbers, key=lambda name: numbers[name])
    if concept.startswith(OF_SUBJECTS):
        chosen = _of_subjects(facts, concept.removeprefix(OF_SUBJECTS))
    elif concept not in relations_of(facts) and Path(concept).is_file():
        chosen = _listed(facts, Path(concept))
        concept = Path(concept).name
    else:
        names = _relations(facts, concept)
        concept = BETWEEN.join(names)
        chosen = {fact.key for fact in facts if fact.relation in names}
    return (
        [fact for fact in facts if fact.key in chosen],
        [fact for fact in facts if fact.key not in chosen],
        concept,
    )


def evenly_drawn(facts: Sequence[Fact], most: int, seed: int) -> list[Fact]:
    """At most so many facts, of every relation as many as of the others if it has them.

    Which of a relation's facts are drawn depends on the seed alone; the order stays. A
    fact in several languages counts once and is drawn in all of them.
    """
    in_languages: dict[tuple[str, str, str], list[int]] = {}
    for number, fact in enumerate(facts):
        in_languages.setdefault(fact.parallel, []).append(number)
    same_facts = list(in_languages.values())
    if len(same_facts) <= most:
        return list(facts)
    by_relation: dict[str, list[int]] = {}
    for place, numbers in enumerate(same_facts):
        by_relation.setdefault(facts[numbers[0]].relation, []).append(place)
    queues = [
        [numbers[i] for i in shuffled(len(numbers), "facts", relation, seed)]
        for relation, numbers in by_relation.items()
    ]
    drawn: list[int] = []
    while len(drawn) < most:
        queues = [queue for queue in queues if queue]
        drawn += [queue.pop() for queue in queues][: most - len(drawn)]
    kept = sorted(number for place in drawn for number in same_facts[place])
    return [facts[number] for number in kept]


def _of_subjects(facts: Sequence[Fact], names: str) -> set[tuple[str, ...]]:
    subjects = [name.strip() for name in names.split(BETWEEN)]
    known = dict.fromkeys(
        name for fact in facts for name in (fact.entity, fact.subject)
    )
    for subject in subjects:
        if subject not in known:
            raise UserError(
                f"--concept {OF_SUBJECTS} must be followed by a subject of the data "
                f"({shown_names(known)}), got {shown(subject)}"
            )
    entities = {fact.entity for fact in facts if fact.subject in subjects}
    return {fact.key for fact in facts if fact.entity in entities.union(subjects)}


def _relations(facts: Sequence[Fact], concept: str) -> list[str]:
    numbers = relations_of(facts)
    if concept in numbers:  # BMLAMA's have any character
        return [concept]
    names = []
    for part in concept.split(BETWEEN):
        word = part.strip()
        similar = [name for name in numbers if word.lower() in name.lower()]
        found = [word] if word in numbers else similar
        if len(found) != 1 or not word:
            some = found or sorted(numbers, key=lambda name: -numbers[name])
            shown_ones = shown_names([f"{name} ({numbers[name]})" for name in some], 20)
            raise UserError(
                f"--concept must be one relation of the data, {OF_SUBJECTS}NAME or a "
                f"file of facts, got {shown(word)}; "
                f"{'it may be' if found else 'relations and their facts'}: {shown_ones}"
            )
        names += found
    return names


def _listed(facts: Sequence[Fact], path: Path) -> set[tuple[str, ...]]:
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    chosen: set[tuple[str, str, str]] = set()
    for row in read_tables(path, "auto"):
        named = {"subject": text_of(row, "subject")}
        named |= {
            part: text_of(row, part)  # type: ignore[arg-type]
            for part in ("relation", "object")
            if column_of(row, part) is not None  # type: ignore[arg-type]
        }
        found = [
            fact.parallel
            for fact in by_subject.get(named["subject"], [])
            if all(getattr(fact, part) == value for part, value in named.items())
        ]
        if not found:
            words = ", ".join(f"{part} {shown(value)}" for part, value in named.items())
            raise UserError(
                f"{row.where}: --data must hold this fact, got none: {words}"
            )
        chosen |= set(found)
    return {fact.key for fact in facts if fact.parallel in chosen}
