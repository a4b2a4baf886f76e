"""Tagged sentences of JSON tables: a column of words and a column of tags."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuitcut.data.tables import TableRow, read_table, table_format
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown_names

TABLES = ("json", "jsonl")
TOKEN_COLUMNS = ("tokens", "words", "token")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "ner", "fine_ner_tags")


def is_tagged_table(path: Path) -> bool:
    """Whether the suffix of `path` means JSON or JSON Lines."""
    return table_format(path) in TABLES


def table_sentences(
    path: Path, token_column: str | None, tag_column: str | None
) -> Iterator[tuple[list[str], list[str], int]]:
    """Words, tags and document number of every row that has words.

    The document number is always 0, because tables do not mark documents.

    Raises:
        UserError: When a row is malformed; the message names its line.
    """
    for row in read_table(path, str(table_format(path))):
        words = _texts(row, token_column, TOKEN_COLUMNS, "--text_column")
        tags = _texts(row, tag_column, TAG_COLUMNS, "--label_column")
        if len(words) != len(tags):
            raise UserError(
                f"{row.where}: expected {len(words)} tags, one per word, got "
                f"{len(tags)}"
            )
        if words:
            yield words, tags, 0


def _texts(
    row: TableRow, name: str | None, usual: tuple[str, ...], flag: str
) -> list[str]:
    candidates = usual if name is None else (name,)
    column = next((c for c in candidates if c in row.values), None)
    if column is None:
        raise UserError(
            f"{row.where}: {flag} must name a column of this row, got "
            f"{name or 'none'}; the row has {shown_names(row.values)}"
        )
    values: Any = row.values[column]
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{row.where}: column {column!r} must hold a list of texts")
    return values
