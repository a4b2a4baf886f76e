"""Records of a run, one line a fact: what is done is not done again after a kill."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from circuitcut.storage.atomic import os_errors_as_user_errors, write_text
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import lines_of, read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import Count, check_type

UnitList = list[tuple[Count, Count]]
"""`[layer, number]` of every unit, as published."""


class PromptRecord(TypedDict):
    """A prompt, what is predicted, and its units, the most important one first."""

    text: str
    gold: str
    predicted: str
    probability: float
    coarse: UnitList


class FoundRecord(TypedDict):
    """The units of a fact's prompts."""

    fact: Count
    subject: str
    relation: str
    object: str
    language: NotRequired[str]
    prompts: list[PromptRecord]


class EffectRecord(TypedDict):
    """Mean probabilities of the object under scaled units, before and after."""

    fact: Count
    own: dict[str, float]
    """Over the fact's prompts, by `before` and by `UNITS OPERATION`."""
    others: dict[str, float]
    """Over the other relations' facts; empty where there are none."""


class EditRecord(TypedDict):
    """Measures of one fact before and after its edit."""

    fact: Count
    target: str
    """The new object; empty where the fact is not edited."""
    left_out: str
    """Why it is not edited; empty where it is."""
    n_units: Count
    sets: dict[str, dict[str, float]]
    """Measures `before`, and by the set of units that was edited. Of perplexities the
    mean log-probability."""


class ActivityRecord(TypedDict):
    """Mean activation of a fact's units at the predicting positions.

    By kind of prompt (`PROMPT_KINDS`); a kind that no prompt has is missing.
    """

    fact: Count
    refined: dict[str, float]
    random: dict[str, float]
    """Of as many random units of the same layers."""


PROMPT_KINDS = ("fact", "head", "relation", "other")
"""Prompts of the fact (they have its head and ask for its tail); its head alone;
prompts of its relation about other subjects with other objects; prompts of other
relations."""


class Records:
    """A file of JSON lines that grows by one line a fact.

    A last line that was torn by a kill is cut off when the file is opened.

    Args:
        path: The file, which need not exist.
        kind: `FoundRecord`, `EffectRecord` or `ActivityRecord`.
        numbers: The facts of this run, in order.
    """

    def __init__(self, path: Path, kind: type, numbers: Sequence[int]):
        self.path = path
        self.numbers = numbers
        self.entries: list[Any] = []
        if path.exists():
            self.entries = read_records(path, kind, numbers)
            write_text(path, lines_for(self.entries))

    @property
    def left(self) -> Sequence[int]:
        """The facts that have no entry yet."""
        return self.numbers[len(self.entries) :]

    def of(self, number: int) -> Any:
        """The entry of a fact."""
        return self.entries[self.numbers.index(number)]

    def add(self, entry: Any) -> None:
        """Append an entry and its line."""
        self.entries.append(entry)
        line = lines_for([entry])
        with (
            os_errors_as_user_errors(self.path),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(line)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def lines_for(entries: Iterable[Any]) -> str:
    """The text of a file with these entries."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read_records(path: Path, kind: type, numbers: Sequence[int]) -> list[Any]:
    """The entries of a file of records, without an incomplete last line.

    Args:
        kind: `FoundRecord`, `EffectRecord`, `ActivityRecord` or `EditRecord`.
        numbers: The facts that it has entries of, in order; the last may be missing.

    Raises:
        UserError: When a line is no such entry, or they are not in order; the message
            has its number.
    """
    text = read_text(path)
    entries = []
    for number, line in enumerate(lines_of(text[: text.rfind("\n") + 1])):
        where = f"{path}, line {number + 1}"
        try:
            entry = parse_json(line)
        except JsonProblem as error:
            raise UserError(f"{where} is not JSON: {error}; delete the file") from error
        check_type(entry, kind, where)
        if number >= len(numbers) or entry["fact"] != numbers[number]:
            expected = numbers[number] if number < len(numbers) else "missing"
            raise UserError(
                f"{where}: entry fact must be {expected}, got {entry['fact']}; delete "
                "the file"
            )
        entries.append(entry)
    return entries
