"""Prompts about facts as rows of a batch, with the objects that compete at each token.

An object of several tokens is scored whole: its log-probability is the sum over all its
tokens. It is compared with the other objects of its relation token by token: at each of
its tokens compete those of the objects that are equal up to there. An object beats all
others if it wins everywhere, as in a search for the best object through their tree.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from circuitcut.data.facts.records import Fact
from circuitcut.tasks.base import NO_TARGET
from circuitcut.tasks.facts.asked import AskedPrompt
from circuitcut.tasks.language_rows import Row

CONCEPT, OTHER, NEAR, TEXT = range(4)
"""`kind` of a row: of the concept, another fact, a neighbour (a prompt about another
subject of which the object is true), a text."""
NO_RIVAL = -1
MOST_RIVALS = 100
"""Objects that one object is compared with at one token."""
Answer = tuple[int, ...]


@dataclass(frozen=True)
class Objects:
    """The objects of every relation in tokens, as they stand in the prompts asked."""

    known: Mapping[tuple[str, str, bool], Mapping[str, Answer]]
    """By relation, language and whether they begin a text, which some tokenizers write
    in another way; then by the object."""
    true: Mapping[tuple[str, str], frozenset[str]]
    """The objects of each subject and relation."""

    @classmethod
    def of(
        cls, facts: Sequence[Fact], prompts: Sequence[tuple[Fact, AskedPrompt]]
    ) -> "Objects":
        """Those of all facts at hand, in the tokens of their prompts."""
        known: dict[tuple[str, str, bool], dict[str, Answer]] = {}
        for fact, prompt in prompts:
            key = fact.relation, fact.language, begins(prompt)
            known.setdefault(key, {})[fact.object] = prompt.answer_ids
        true: dict[tuple[str, str], set[str]] = {}
        for fact in facts:
            true.setdefault((fact.subject, fact.relation), set()).add(fact.object)
        return cls(known, {key: frozenset(names) for key, names in true.items()})

    def rivals(
        self, fact: Fact, prompt: AskedPrompt
    ) -> list[Int[np.ndarray, "_rival"]]:
        """Tokens that compete at each token of the object, often none behind the first.

        The wrong objects that the data name for the fact, or all other objects of its
        relation. A masked model is given as many masks as the object has tokens, so
        that only objects of that length compete.
        """
        key = fact.relation, fact.language, begins(prompt)
        places = self.known.get(key, {})
        true = self.true.get((fact.subject, fact.relation), frozenset())
        named = [name for name in fact.choices if name in places]
        others = {
            places[name]
            for name in (named or places)
            if name not in true and places[name] != prompt.answer_ids
        }
        if prompt.masked:
            others = {ids for ids in others if len(ids) == len(prompt.answer_ids)}
        return branches(prompt.answer_ids, sorted(others), seed=prompt.text)


def begins(prompt: AskedPrompt) -> bool:
    """Whether the object is the first word of the prompt."""
    return prompt.masked and all(prompt.special[: prompt.position])


def branches(
    answer: Answer, others: Sequence[Answer], *, seed: str = ""
) -> list[Int[np.ndarray, "_rival"]]:
    """Tokens of the other answers that are equal to this one up to each of its tokens.

    Args:
        seed: Draws `MOST_RIVALS` of them where there are more.
    """
    rivals = []
    for place, token in enumerate(answer):
        found = {
            other[place]
            for other in others
            if len(other) > place and other[:place] == answer[:place]
        }
        ids = sorted(found - {token})
        if len(ids) > MOST_RIVALS:
            ids = sorted(random.Random(seed).sample(ids, MOST_RIVALS))
        rivals.append(np.array(ids, int))
    return rivals


def fact_row(
    prompt: AskedPrompt,
    rivals: Sequence[Int[np.ndarray, "_rival"]],
    *,
    kind: int,
    cluster: int,
    unseen: bool,
) -> Row:
    """A prompt with its object; for a causal model its other tokens are targets too.

    Those are retained, except tokens of the object and its rivals. The concept is where
    another object competes. Of another fact the object is retained; of a neighbour
    nothing is, so that it is scored alone.
    """
    ids = np.array(prompt.whole_ids)
    special = np.zeros(len(ids), bool)
    special[: len(prompt.special)] = prompt.special
    targets: np.ndarray = np.full(len(ids), NO_TARGET)
    places = list(prompt.positions)
    if not prompt.masked:
        following = ids[1 : prompt.position + 1]
        targets[: prompt.position] = np.where(
            special[1 : prompt.position + 1], NO_TARGET, following
        )
    spared = [*prompt.answer_ids, *(token for of in rivals for token in of)]
    retain = (targets != NO_TARGET) & ~np.isin(targets, spared)
    targets[places] = prompt.answer_ids
    concept = np.zeros(len(ids), bool)
    if kind == CONCEPT:
        concept[places] = [len(of) > 0 for of in rivals]
    elif kind == OTHER:
        retain[places] = True
    else:
        retain[:] = False
    asked = np.zeros(len(ids), bool)
    asked[places] = True
    return Row(
        inputs=ids,
        targets=targets,
        real=~special | asked,
        concept=concept,
        retain=retain,
        cluster=cluster,
        unseen=unseen,
        numbers={
            "kind": kind,
            "position": prompt.position,
            "n_answer": len(prompt.answer_ids),
            "n_branches": sum(len(of) > 0 for of in rivals),
        },
    )


def text_numbers() -> dict[str, int]:
    """The numbers of a row without a fact."""
    return {"kind": TEXT, "position": 0, "n_answer": 0, "n_branches": 0}


def padded_rivals(
    rivals: Sequence[Int[np.ndarray, "_rival"]], n_answer: int, n_rivals: int
) -> Int[np.ndarray, "answer most"]:
    """The rivals of one prompt in a table, repeated up to the largest number.

    `NO_RIVAL` where none competes.
    """
    table: np.ndarray = np.full((n_answer, n_rivals), NO_RIVAL)
    for place, of in enumerate(rivals):
        if len(of):
            table[place] = np.resize(of, n_rivals)
    return table
