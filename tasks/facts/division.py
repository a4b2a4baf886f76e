"""Which prompts of known facts are in which split, and what a run records of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from circuitcut.data.facts.records import Fact, FactsCorpus
from circuitcut.data.facts.splits import FactSplits, place_others, split_facts
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.known import KNOWN_SHARE
from circuitcut.tasks.facts.material import Asked
from circuitcut.tasks.facts.rows import CONCEPT, NEAR, OTHER

FEWEST_PROMPTS = 4
"""Known prompts of the concept that fill four splits."""
MEASURED = ("mask", "tune", "relearn", "heldout")
"""The splits that share no subject; `base` has every prompt."""


@dataclass(frozen=True)
class Division:
    """Numbers of the prompts of every split and kind."""

    asked: Mapping[int, Asked]
    shares: Mapping[int, Sequence[float]]
    """Share of each fact's prompts that the model has right, by kind; empty before a
    model was asked: every fact then counts as known."""
    concept: FactSplits
    numbers: Mapping[str, Mapping[int, Sequence[int]]]
    """By split and kind, the first prompts of all facts first."""

    def objects_elsewhere(self, split: str) -> set[str]:
        """Objects of the concept in the other splits than this one."""
        return {
            self.asked[CONCEPT].fact_of(number).object
            for name in MEASURED
            if name != split
            for number in self.numbers[name][CONCEPT]
        }

    @property
    def chance(self) -> float:
        """Share of the concept's prompts that a guess without the subject has right.

        Of every relation (in its language) the share of the most frequent object,
        among all its known facts (those that are retained too); of the only known fact
        of a relation one of the relation's objects.
        """
        known: dict[tuple[str, str], Counter[str]] = {}
        possible: dict[tuple[str, str], set[str]] = {}
        for kind in (CONCEPT, OTHER):
            facts = self.asked[kind].facts
            for number in _known_facts(self.asked, self.shares, kind):
                fact = facts[number]
                asked_as = fact.relation, fact.language
                known.setdefault(asked_as, Counter())[fact.object] += 1
            for prompt in self.asked[kind].prompts:
                fact = facts[prompt.fact]
                asked_as = fact.relation, fact.language
                possible.setdefault(asked_as, set()).add(fact.object)
        guesses = []
        for number in _known_facts(self.asked, self.shares, CONCEPT):
            fact = self.asked[CONCEPT].facts[number]
            asked_as = fact.relation, fact.language
            of = known[asked_as]
            alone = of.total() == 1
            guesses.append(
                1 / len(possible[asked_as]) if alone else max(of.values()) / of.total()
            )
        return sum(guesses) / len(guesses)

    def in_words(self, name: str) -> str:
        """The share of known facts, and what the splits share."""
        (n, of), (n_others, of_others) = (
            _n_known(self.asked, self.shares, kind) for kind in (CONCEPT, OTHER)
        )
        return (
            f"known facts: {n} of {of} ({n / of:.0%}) of {name} (rank 1 in at least "
            f"half of the prompts), {n_others} of {of_others} others; splits by "
            f"{self.concept.by}; {self.concept.objects_outside:.0%} of the held-out "
            "prompts have an object that occurs in another split"
        )

    def summary(self, corpus: FactsCorpus) -> dict[str, Any]:
        """The content of known.json."""
        asked, shares = self.asked[CONCEPT], self.shares[CONCEPT]
        n, of = _n_known(self.asked, self.shares, CONCEPT)
        elsewhere = {fact.object for fact in corpus.others}
        languages = _numbers(self.asked, self.shares, CONCEPT, "language")
        known = [i for i, share in enumerate(shares) if share >= KNOWN_SHARE]
        in_others = [asked.facts[i].object in elsewhere for i in known]
        return {
            "concept": corpus.name,
            "facts": of,
            "known": n,
            "share_known": n / of,
            "prompts": len(asked.prompts),
            "left_out": {why: len(facts) for why, facts in asked.left_out.items()},
            "relations": _numbers(self.asked, self.shares, CONCEPT),
            "others": _numbers(self.asked, self.shares, OTHER),
            **({"languages": languages} if any(languages) else {}),
            "split_by": self.concept.by,
            "heldout_objects_in_other_splits": self.concept.objects_outside,
            "objects_in_other_facts": sum(in_others) / len(in_others),
            "chance": self.chance,
            "known_facts": [
                [*asked.facts[i].key[:3], shares[i], *asked.facts[i].key[3:]]
                for i in known
            ],
        }


def divide(
    asked: Mapping[int, Asked],
    shares: Mapping[int, Sequence[float]],
    corpus: FactsCorpus,
    seed: int,
) -> Division:
    """The prompts of known facts in their splits; `base` has those of all facts.

    Args:
        asked: Prompts by kind; see `material`.
        shares: See `Division.shares`.

    Raises:
        UserError: When fewer than `FEWEST_PROMPTS` prompts of the concept are known, or
            all known facts have the same object.
    """
    known = {kind: _known_prompts(asked, shares, kind) for kind in (CONCEPT, OTHER)}
    if len(known[CONCEPT]) < FEWEST_PROMPTS:
        raise UserError(_too_few(asked, shares, corpus.name))
    facts = {
        kind: [asked[kind].fact_of(number) for number in numbers]
        for kind, numbers in known.items()
    }
    splits = split_facts(facts[CONCEPT], by_object=corpus.by_object, seed=seed)
    others = place_others(facts[OTHER], facts[CONCEPT], splits, seed)
    numbers: dict[str, dict[int, list[int]]] = {
        "base": {
            CONCEPT: list(range(len(asked[CONCEPT].prompts))),
            OTHER: list(range(len(asked[OTHER].prompts))),
            NEAR: [],
        }
    }
    for split in MEASURED:
        of_concept = [known[CONCEPT][i] for i in splits.splits[split]]
        of_split = {asked[CONCEPT].prompts[number].fact for number in of_concept}
        numbers[split] = {
            CONCEPT: of_concept,
            OTHER: [known[OTHER][i] for i in others[split]],
            NEAR: [
                number
                for number, prompt in enumerate(asked[NEAR].prompts)
                if prompt.fact in of_split
            ],
        }
    in_turn = {
        split: {kind: _in_turn(asked[kind], of) for kind, of in of_kind.items()}
        for split, of_kind in numbers.items()
    }
    division = Division(asked, shares, splits, in_turn)
    if shares and division.chance == 1.0:
        n, of = _n_known(asked, shares, CONCEPT)
        raise UserError(
            f"the known facts of {corpus.name} must have different objects, got {n} of "
            f"{of} facts, all with {facts[CONCEPT][0].object!r}: the model gives it "
            "whatever the subject; choose another --concept or another model"
        )
    return division


def _in_turn(asked: Asked, numbers: Sequence[int]) -> list[int]:
    """The first prompt of every fact, then the second ones, and so on."""
    turns: Counter[int] = Counter()
    order = []
    for number in numbers:
        fact = asked.prompts[number].fact
        order.append((turns[fact], number))
        turns[fact] += 1
    return [number for _, number in sorted(order)]


def _known_facts(
    asked: Mapping[int, Asked], shares: Mapping[int, Sequence[float]], kind: int
) -> list[int]:
    """Numbers of the known facts that have a prompt."""
    prompts = asked[kind].prompts
    return sorted({prompts[i].fact for i in _known_prompts(asked, shares, kind)})


def _known_prompts(
    asked: Mapping[int, Asked], shares: Mapping[int, Sequence[float]], kind: int
) -> list[int]:
    """Numbers of the prompts of known facts; of all facts before a model was asked."""
    prompts = asked[kind].prompts
    if not shares:
        return list(range(len(prompts)))
    return [
        number
        for number, prompt in enumerate(prompts)
        if shares[kind][prompt.fact] >= KNOWN_SHARE
    ]


def _n_known(
    asked: Mapping[int, Asked], shares: Mapping[int, Sequence[float]], kind: int
) -> tuple[int, int]:
    """Known facts, and those that can be asked."""
    numbers = _numbers(asked, shares, kind).values()
    return sum(of["known"] for of in numbers), sum(of["facts"] for of in numbers)


def _numbers(
    asked: Mapping[int, Asked],
    shares: Mapping[int, Sequence[float]],
    kind: int,
    by: Literal["relation", "language"] = "relation",
) -> dict[str, dict[str, int]]:
    """Facts that can be asked, and known ones, by relation or language."""
    prompts = asked[kind].prompts
    known = set(_known_facts(asked, shares, kind))
    numbers: dict[str, dict[str, int]] = {}
    for number in sorted({prompt.fact for prompt in prompts}):
        fact: Fact = asked[kind].facts[number]
        of = numbers.setdefault(getattr(fact, by), {"facts": 0, "known": 0})
        of["facts"] += 1
        of["known"] += number in known
    return numbers


def _too_few(
    asked: Mapping[int, Asked], shares: Mapping[int, Sequence[float]], name: str
) -> str:
    """What a user reads of a concept with too few prompts, or too few known ones."""
    n, of = _n_known(asked, shares, CONCEPT)
    first = asked[CONCEPT].facts[0].where
    if not shares:
        return (
            f"{name} must have at least {FEWEST_PROMPTS} prompts, got "
            f"{len(asked[CONCEPT].prompts)} ({first}); give more facts or paraphrases"
        )
    others = _numbers(asked, shares, OTHER)
    better = sorted(others, key=lambda relation: -others[relation]["known"])[:5]
    words = ", ".join(f"{name} ({others[name]['known']})" for name in better)
    hint = f"; known facts of other relations: {words}" if better else ""
    return (
        f"the model must know facts of {name} with at least {FEWEST_PROMPTS} prompts "
        f"(rank 1 in at least half of them), got {n} of {of} facts, the first in "
        f"{first}{hint}; choose another --concept, more --n_facts or another model"
    )
