"""Facts in four splits that share no subject and, where asked, no object either."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from circuitcut.data.facts.records import Fact
from circuitcut.data.prompts.splits import SPLIT_SHARES, fill_splits
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class FactSplits:
    """Numbers of prompts by split, and what the splits share."""

    splits: dict[str, list[int]]
    """`mask`, `tune`, `relearn` and `heldout`."""
    by: str
    """What no two splits share: `object` (and no subject), `subject`, `fact`, or
    `prompt`."""
    objects_outside: float
    """Share of the held-out prompts whose object occurs in another split."""


def split_facts(facts: Sequence[Fact], *, by_object: bool, seed: int) -> FactSplits:
    """Prompts in four splits, as those of the task prompts: 40, 20, 15 and 25 %.

    Subjects are ordered by a hash. Where there are fewer than four, their facts are
    divided, and the prompts where there are fewer than four facts. A fact's languages
    stay together.

    Args:
        facts: The fact of every prompt.
        by_object: No two splits share an object either: subjects with a common object,
            and objects with a common subject, stay together.

    Raises:
        UserError: When there are fewer than four prompts, or `by_object` gives fewer
            than four groups.
    """
    n_splits = len(SPLIT_SHARES)
    if by_object:
        groups = {"object": _connected(facts)}
        if len(groups["object"]) < n_splits:
            raise UserError(
                f"--split_by object needs {n_splits} groups of facts that share "
                f"neither subject nor object, got {len(groups['object'])}; use "
                "--split_by subject"
            )
    else:
        groups = {
            "subject": _grouped([fact.entity for fact in facts]),
            "fact": _grouped([fact.parallel for fact in facts]),
            "prompt": _grouped(range(len(facts))),
        }
    by = next((name for name, of in groups.items() if len(of) >= n_splits), None)
    if by is None:
        raise UserError(
            f"the concept must have at least {n_splits} prompts, one a split, got "
            f"{len(facts)}; name more facts"
        )
    ordered = _ordered(groups[by], seed)
    splits = {name: sorted(of) for name, of in fill_splits(ordered).items()}
    outside = {
        facts[i].object
        for name, numbers in splits.items()
        if name != "heldout"
        for i in numbers
    }
    shared = [facts[i].object in outside for i in splits["heldout"]]
    return FactSplits(splits, by, sum(shared) / len(shared))


def place_others(
    facts: Sequence[Fact], concept: Sequence[Fact], of_concept: FactSplits, seed: int
) -> dict[str, list[int]]:
    """Prompts of other facts by split.

    Those of a subject of the concept are in that subject's split. The rest are divided
    by their subjects' hashes, in the same shares.

    Args:
        facts: The fact of every prompt.
        concept: The fact of every prompt of the concept.
        of_concept: Their splits.
    """
    home = {
        concept[i].entity: name
        for name, numbers in of_concept.splits.items()
        for i in numbers
        if of_concept.by in ("object", "subject")
    }
    splits: dict[str, list[int]] = {name: [] for name in SPLIT_SHARES}
    rest: dict[Hashable, list[int]] = {}
    for subject, group in _grouped([fact.entity for fact in facts]).items():
        if (name := home.get(str(subject))) is not None:
            splits[name] += group
        else:
            rest[subject] = group
    if len(rest) >= len(SPLIT_SHARES):
        for name, numbers in fill_splits(_ordered(rest, seed)).items():
            splits[name] += numbers
    return {name: sorted(numbers) for name, numbers in splits.items()}


def _grouped(names: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    return groups


def _ordered(groups: Mapping[Hashable, list[int]], seed: int) -> list[list[int]]:
    """The groups in the order of a hash of their names."""

    def digest(name: Hashable) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode()).digest()

    return [groups[name] for name in sorted(groups, key=digest)]


def _connected(facts: Sequence[Fact]) -> dict[Hashable, list[int]]:
    """Facts that are connected by common subjects and objects, by one of them."""
    parent = list(range(len(facts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[tuple[str, str], int] = {}
    for number, fact in enumerate(facts):
        for end in (("subject", fact.entity), ("object", fact.object)):
            parent[root(number)] = root(first.setdefault(end, number))
    return _grouped(facts[root(number)].entity for number in range(len(facts)))
