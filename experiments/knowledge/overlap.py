"""How many units facts share: within and between relations and languages.

Every number is a mean Jaccard index of pairs of refined sets, beside that of random
sets of the same sizes. Facts of two relations are compared in one language.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

from circuitcut.attribution.knowledge.unit_sets import (
    Units,
    mean_overlap,
    overlap_of_pairs,
)
from circuitcut.experiments.knowledge.study import Study

Row = dict[str, Any]
Sets = dict[tuple[str, str, str], Units]
"""The units of every fact in one language, by what is equal in all languages."""
SAME_FACT, ONE_RELATION = "the same fact", "two facts of one relation"
TWO_RELATIONS = "facts of two relations"
_OF_ONE = 2000
"""Most pairs of facts of one relation in two languages, evenly spaced."""
_BETWEEN = 100
"""Most pairs of facts of two relations in one language."""


def overlap_of_groups(study: Study) -> list[Row]:
    """The overlap of every two relations, and of every two languages.

    Rows have `by` (`relation` or `language`), the groups `one` and `other`, the kind of
    `pairs`, and what `overlap_of_pairs` gives. A relation or language with itself:
    pairs of different facts.
    """
    return [*_of_relations(study), *_of_languages(study)]


def overlap_rows(groups: Sequence[Row]) -> list[Row]:
    """The same by kind of pair, means over all pairs."""
    kinds: dict[str, Callable[[Row], bool]] = {
        "same relation": lambda row: (
            row["by"] == "relation" and row["pairs"] == ONE_RELATION
        ),
        "other relations": lambda row: (
            row["by"] == "relation" and row["pairs"] == TWO_RELATIONS
        ),
    }
    if any(row["by"] == "language" for row in groups):
        kinds |= {
            "same fact, other language": lambda row: row["pairs"] == SAME_FACT,
            "same relation, other language": lambda row: (
                row["by"] == "language"
                and row["one"] != row["other"]
                and row["pairs"] == ONE_RELATION
            ),
        }
    return [
        {"pairs": name, **pooled([row for row in groups if belongs(row)])}
        for name, belongs in kinds.items()
    ]


def by_relation(study: Study) -> dict[str, list[Units]]:
    """The sets of every relation's facts, in all languages."""
    found: dict[str, list[Units]] = {}
    for number, units in study.refined_sets.items():
        found.setdefault(study.facts[number].fact.relation, []).append(units)
    return found


def pooled(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all pairs of several groups of pairs."""
    counted = [row for row in found if row["n_pairs"]]
    n_pairs = sum(row["n_pairs"] for row in counted)
    return {"n_pairs": n_pairs} | {
        name: sum(row["n_pairs"] * row[name] for row in counted) / n_pairs
        if n_pairs
        else None
        for name in ("jaccard", "random")
    }


def _of_relations(study: Study) -> Iterator[Row]:
    n_units = sum(study.widths)
    sets: dict[str, dict[str, list[Units]]] = {}
    for number, units in study.refined_sets.items():
        fact = study.facts[number].fact
        of_language = sets.setdefault(fact.relation, {})
        of_language.setdefault(fact.language, []).append(units)
    for one, other in combinations_with_replacement(sets, 2):
        languages = [name for name in sets[one] if name in sets[other]]
        found = [
            mean_overlap(sets[one][name], n_units=n_units)
            if one == other
            else mean_overlap(
                sets[one][name],
                sets[other][name],
                n_units=n_units,
                most_pairs=_BETWEEN,
            )
            for name in languages
        ]
        pairs = ONE_RELATION if one == other else TWO_RELATIONS
        yield {"by": "relation", "one": one, "other": other, "pairs": pairs} | pooled(
            found
        )


def _of_languages(study: Study) -> Iterator[Row]:
    n_units = sum(study.widths)
    sets: dict[str, Sets] = {}
    for number, units in study.refined_sets.items():
        fact = study.facts[number].fact
        sets.setdefault(fact.language, {})[fact.parallel] = units
    if len(sets) < 2:
        return
    for one, other in combinations_with_replacement(sets, 2):
        pairs = {ONE_RELATION: _different(sets[one], sets[other])}
        if one != other:
            both = [key for key in sets[one] if key in sets[other]]
            pairs[SAME_FACT] = [(sets[one][key], sets[other][key]) for key in both]
        for name, of in pairs.items():
            yield {
                **{"by": "language", "one": one, "other": other, "pairs": name},
                **overlap_of_pairs(of, n_units=n_units),
            }


def _different(one: Sets, other: Sets) -> list[tuple[Units, Units]]:
    """Pairs of different facts of one relation; within a language each pair once."""
    pairs = []
    of_other = _keys_by_relation(other)
    for relation, keys in _keys_by_relation(one).items():
        others = of_other.get(relation, [])
        n_pairs = len(keys) * len(others)
        for number in range(0, n_pairs, max(1, n_pairs // _OF_ONE)):
            first, second = keys[number // len(others)], others[number % len(others)]
            if first < second if one is other else first != second:
                pairs.append((one[first], other[second]))
    return pairs


def _keys_by_relation(sets: Sets) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for key in sets:
        found.setdefault(key[1], []).append(key)
    return found
