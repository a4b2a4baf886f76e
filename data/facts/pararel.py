"""ParaRel: patterns with `[X]` and `[Y]`, and tuples of subject and object.

Elazar et al. (2021), "Measuring and Improving Consistency in Pretrained Language
Models", https://arxiv.org/abs/2102.01017. `patterns/P36.jsonl` has the paraphrases of a
relation, `tuples/P36.jsonl` its facts; a relation without patterns is left out.
"""

from pathlib import Path

from circuitcut.data.facts.records import (
    OBJECT_SLOT,
    SUBJECT_SLOT,
    Fact,
    filled,
)
from circuitcut.data.tables import TableRow, read_table
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in
from circuitcut.storage.reading.typed_fields import shown

PATTERNS, TUPLES = "patterns", "tuples"


def is_pararel(path: Path) -> bool:
    """Whether a folder has the two folders of ParaRel."""
    return (path / PATTERNS).is_dir() and (path / TUPLES).is_dir()


def read_pararel(path: Path, *, more_patterns_than: int = 0) -> list[Fact]:
    """A fact for every tuple of the relations that have patterns, doubled ones too.

    Args:
        path: Folder with `patterns` and `tuples`.
        more_patterns_than: Leave out relations with so many patterns or fewer (the
            knowledge-neuron papers leave out those with 3).

    Raises:
        UserError: When a file of tuples is missing or a line is malformed; the message
            names file and line.
    """
    facts: list[Fact] = []
    files = [file for file in files_in(path / PATTERNS) if file.suffix == ".jsonl"]
    if not files:
        raise UserError(
            f"{path / PATTERNS} must hold a .jsonl file for each relation, got none"
        )
    for file in files:
        patterns = [_pattern(row) for row in read_table(file, "jsonl")]
        if len(patterns) > more_patterns_than:
            facts += _facts(path / TUPLES / file.name, patterns)
    return facts


def _pattern(row: TableRow) -> str:
    pattern = _text(row, "pattern")
    if pattern.count(SUBJECT_SLOT) != 1 or pattern.count(OBJECT_SLOT) != 1:
        raise UserError(
            f"{row.where}: a pattern must have one {SUBJECT_SLOT} (subject) and one "
            f"{OBJECT_SLOT} (object), got {shown(pattern)}"
        )
    return pattern


def _facts(file: Path, patterns: list[str]) -> list[Fact]:
    return [
        Fact(
            subject := _text(row, "sub_label"),
            file.stem,
            _text(row, "obj_label"),
            tuple(filled(p, subject, SUBJECT_SLOT, row.where) for p in patterns),
            where=row.where,
        )
        for row in read_table(file, "jsonl")
    ]


def _text(row: TableRow, entry: str) -> str:
    value = row.values.get(entry)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: {entry} must be text, got {shown(value)}")
    return value.strip()
