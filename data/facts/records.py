"""Records of the task facts: what a subject's relation to an object is asked by."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from circuitcut.data.prompts.records import (
    MASK,
    MASK_SPELLINGS,
    PromptRecord,
    completed,
)
from circuitcut.data.sampling import digest_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown

MOST_CHARACTERS = 20_000
"""Of one prompt; no model here has room for more."""
SUBJECT_SLOT, OBJECT_SLOT = "[X]", "[Y]"
"""Places of subject and object in a pattern of ParaRel."""


@dataclass(frozen=True)
class Fact:
    """A subject, a relation and an object, and the prompts that ask for the object."""

    subject: str
    relation: str
    object: str
    prompts: tuple[str, ...]
    """Paraphrases with the subject filled in. The object stands at their `MASK`, or
    follows them."""
    neighbourhood: tuple[str, ...] = ()
    """Prompts about other subjects of which the same object is true."""
    counterfactual: str | None = None
    """A false object, to which an edit changes the fact."""
    choices: tuple[str, ...] = ()
    """Wrong objects that the data name: the other choices of a multiple choice."""
    where: str = ""
    """File and line, for messages."""
    language: str = ""
    """Of its prompts, such as `en`; empty where the data name none."""
    same_as: tuple[str, str, str] | None = None
    """Subject, relation and object of this fact in the data's first language."""

    @property
    def key(self) -> tuple[str, ...]:
        """Subject, relation, object and language, if it has one.

        Two records with the same key are one fact.
        """
        of_language = (self.language,) if self.language else ()
        return self.subject, self.relation, self.object, *of_language

    @property
    def parallel(self) -> tuple[str, str, str]:
        """What is equal for a fact in all languages."""
        return self.same_as or (self.subject, self.relation, self.object)

    @property
    def entity(self) -> str:
        """The subject by one name in all languages."""
        return self.parallel[0]

    def record(self, prompt: str) -> PromptRecord:
        """One of its prompts with the object as the answer."""
        return PromptRecord(prompt, self.object, group=self.subject, where=self.where)


@dataclass(frozen=True)
class FactsCorpus:
    """The facts of the concept, other facts, and texts to retain by split."""

    concept: tuple[Fact, ...]
    others: tuple[Fact, ...]
    texts_of: Mapping[str, tuple[str, ...]]
    """Plain texts to retain by split; without any, no split has one."""
    name: str
    """Of the concept, in words."""
    by_object: bool = False
    """The splits are disjoint in objects too."""

    @property
    def labels(self) -> list[str] | None:
        """None: the task has no classes."""
        return None

    def texts(self) -> list[str]:
        """Every prompt with its object, and the texts of `base`."""
        prompts = [
            completed(fact.record(prompt))
            for fact in (*self.concept, *self.others)
            for prompt in (*fact.prompts, *fact.neighbourhood)
        ]
        return [*dict.fromkeys(prompts), *self.texts_of.get("base", ())]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every record; files and lines are not a part of it."""
        facts = {
            "concept": [_content(fact) for fact in self.concept],
            "others": [_content(fact) for fact in self.others],
        }
        return digest_of({**facts, **self.texts_of}, self.name, str(self.by_object))


def filled(template: str, subject: str, slot: str, where: str) -> str:
    """A template with its subject, and `MASK` where the object stands.

    Args:
        slot: What stands for the subject, such as `[X]` or `{}`; exactly once.

    Raises:
        UserError: When the slot is missing or doubled, the object has several places,
            or the prompt is too long.
    """
    if template.count(slot) != 1:
        raise UserError(
            f"{where}: a prompt must have one {slot} for the subject, got "
            f"{template.count(slot)} in {shown(template)}"
        )
    return checked_prompt(template.replace(slot, subject), where)


def checked_prompt(prompt: str, where: str) -> str:
    """A prompt with at most one place of the object, written as `MASK`.

    Raises:
        UserError: When it is empty or too long, or has several such places.
    """
    for spelling in (*MASK_SPELLINGS, OBJECT_SLOT):
        prompt = prompt.replace(spelling, MASK)
    prompt = prompt.strip()
    if not prompt.replace(MASK, "").strip():
        raise UserError(f"{where}: a prompt must hold more than a {MASK}")
    if prompt.count(MASK) > 1:
        raise UserError(
            f"{where}: a prompt must have at most one {MASK}, got {prompt.count(MASK)}"
        )
    if len(prompt) > MOST_CHARACTERS:
        raise UserError(
            f"{where}: a prompt must have at most {MOST_CHARACTERS:,} characters, got "
            f"{len(prompt):,}"
        )
    return prompt


def distinct(facts: Iterable[Fact]) -> list[Fact]:
    """Each fact once, with the prompts of all its records, in their order."""
    by_key: dict[tuple[str, ...], Fact] = {}
    for fact in facts:
        known = by_key.get(fact.key)
        if known is None:
            by_key[fact.key] = replace(fact, prompts=tuple(dict.fromkeys(fact.prompts)))
        elif known.prompts != fact.prompts:
            by_key[fact.key] = replace(
                known,
                prompts=tuple(dict.fromkeys((*known.prompts, *fact.prompts))),
                neighbourhood=tuple(
                    dict.fromkeys((*known.neighbourhood, *fact.neighbourhood))
                ),
                choices=tuple(dict.fromkeys((*known.choices, *fact.choices))),
            )
    return list(by_key.values())


def relations_of(facts: Iterable[Fact]) -> dict[str, int]:
    """Number of facts by relation, in the order of the data."""
    return dict(Counter(fact.relation for fact in facts))


def languages_of(facts: Iterable[Fact]) -> list[str]:
    """The languages of facts in the order of the data; empty where they name none."""
    return [name for name in dict.fromkeys(f.language for f in facts) if name]


def _content(fact: Fact) -> tuple[object, ...]:
    return (
        *(fact.key, fact.prompts, fact.neighbourhood),
        *(fact.counterfactual, fact.choices),
        *([fact.same_as] if fact.same_as else []),
    )
