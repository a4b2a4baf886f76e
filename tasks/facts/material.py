"""What a model can be asked about the concept, about other facts, and of neighbours."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from circuitcut.data.facts.records import Fact, FactsCorpus
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import AskedFacts, AskedPrompt, asked_facts
from circuitcut.tasks.facts.rows import CONCEPT, NEAR, OTHER, Objects, begins
from circuitcut.tasks.rows.prompts import Reader

ALONE = "prompts of a relation with no other object of its length"
Rivals = tuple[Int[np.ndarray, "_rival"], ...]
"""What competes with each token of an object."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The prompts of some facts that a model can be asked, and their rivals."""

    facts: tuple[Fact, ...]
    prompts: tuple[AskedPrompt, ...]
    rivals: tuple[Rivals, ...]
    """Of every prompt."""
    left_out: Mapping[str, Sequence[Fact]]
    """Facts of the prompts that cannot be asked, by reason."""

    def fact_of(self, number: int) -> Fact:
        """The fact of a prompt."""
        return self.facts[self.prompts[number].fact]

    def of_facts(self) -> list[list[AskedPrompt]]:
        """The prompts of each fact, in the order of `facts`."""
        return AskedFacts(self.prompts, {}).of_fact(len(self.facts))

    def reasons(self) -> str:
        """Why prompts cannot be asked, how many, and where the first's fact stands."""
        return "; ".join(
            f"{reason}: {len(facts)}, first in {facts[0].where}"
            for reason, facts in self.left_out.items()
        )


def material(
    corpus: FactsCorpus, reader: Reader, n_paraphrases: int | None
) -> dict[int, Asked]:
    """Prompts by kind: `CONCEPT`, `OTHER` and `NEAR`.

    Args:
        n_paraphrases: Most prompts of one fact, the first that can be asked; None: all.

    Raises:
        UserError: When no prompt of the concept can be asked.
    """
    facts_of = {CONCEPT: corpus.concept, OTHER: corpus.others, NEAR: corpus.concept}
    found = {
        kind: _first_ones(_ask(facts, reader, kind == NEAR), n_paraphrases)
        for kind, facts in facts_of.items()
    }
    pairs = [
        (facts_of[kind][prompt.fact], prompt)
        for kind in (CONCEPT, OTHER)
        for prompt in found[kind].prompts
    ]
    objects = Objects.of((*corpus.concept, *corpus.others), pairs)
    asked = {
        kind: Asked(
            facts_of[kind],
            of.prompts,
            _rivals(objects, facts_of[kind], of.prompts),
            of.left_out,
        )
        for kind, of in found.items()
    }
    asked[CONCEPT] = _with_rivals(asked[CONCEPT])
    _check(asked[CONCEPT], corpus.name)
    return asked


def _ask(facts: Sequence[Fact], reader: Reader, neighbourhood: bool) -> AskedFacts:
    return asked_facts(
        facts,
        reader.tokenizer,
        masked=reader.masked,
        max_length=reader.max_length,
        prefix=reader.prefix,
        neighbourhood=neighbourhood,
    )


def _first_ones(asked: AskedFacts, most: int | None) -> AskedFacts:
    """The first prompts of every fact."""
    if most is None:
        return asked
    n_asked: Counter[int] = Counter()
    kept = []
    for prompt in asked.prompts:
        n_asked[prompt.fact] += 1
        if n_asked[prompt.fact] <= most:
            kept.append(prompt)
    return replace(asked, prompts=tuple(kept))


def _rivals(
    objects: Objects, facts: Sequence[Fact], prompts: Sequence[AskedPrompt]
) -> tuple[Rivals, ...]:
    """Those of every prompt, found once for prompts with the same tokens of a fact."""
    found: dict[Any, Rivals] = {}
    rivals = []
    for prompt in prompts:
        key = prompt.fact, begins(prompt), prompt.answer_ids
        if key not in found:
            found[key] = tuple(objects.rivals(facts[prompt.fact], prompt))
        rivals.append(found[key])
    return tuple(rivals)


def _with_rivals(asked: Asked) -> Asked:
    """Without the prompts whose object competes with none."""
    alone = [not any(map(len, of)) for of in asked.rivals]
    if not any(alone):
        return asked
    kept = [i for i, is_alone in enumerate(alone) if not is_alone]
    facts = [asked.fact_of(i) for i, is_alone in enumerate(alone) if is_alone]
    return Asked(
        asked.facts,
        tuple(asked.prompts[i] for i in kept),
        tuple(asked.rivals[i] for i in kept),
        {**asked.left_out, ALONE: facts},
    )


def _check(asked: Asked, name: str) -> None:
    """Refuse a concept of which nothing can be asked; log what is left out."""
    if not asked.prompts:
        raise UserError(
            f"no prompt of {name} can be asked of this model: {asked.reasons()}; use "
            "another model or other prompts"
        )
    if n := sum(map(len, asked.left_out.values())):
        logger.info("%s: %d prompts are left out (%s)", name, n, asked.reasons())
