"""Tagged sentences of JSON tables: a column of words and a column of tags."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuitcut.data.tables import TableRow, read_table, table_format
from circuitcut.storage.errors import UserError

TABLES = ("json", "jsonl")
TOKEN_COLUMNS = ("tokens", "words", "token")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "ner", "fine_ner_tags")


def is_tagged_table(path: Path) -> bool:
    """Whether the name of `path` promises JSON or JSON Lines."""
    return table_format(path) in TABLES


def table_sentences(
    path: Path, token_column: str | None, tag_column: str | None
) -> Iterator[tuple[list[str], list[str], int]]:
    """Words and tags of every row that has words, and 0: no documents are marked.

    Raises:
        UserError: When a row is malformed, with its line.
    """
    for row in read_table(path, str(table_format(path))):
        words = _texts(row, token_column, TOKEN_COLUMNS, "--text_column")
        tags = _texts(row, tag_column, TAG_COLUMNS, "--label_column")
        if len(words) != len(tags):
            raise UserError(
                f"{row.where}: expected {len(words)} tags, one a word, got {len(tags)}"
            )
        if words:
            yield words, tags, 0


def _texts(
    row: TableRow, asked: str | None, usual: tuple[str, ...], flag: str
) -> list[str]:
    wanted = usual if asked is None else (asked,)
    column = next((name for name in wanted if name in row.values), None)
    if column is None:
        raise UserError(
            f"{row.where}: {flag} must name a column of it, got {asked or 'none'}; it "
            f"has {', '.join(row.values)}"
        )
    values: Any = row.values[column]
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{row.where}: column {column!r} must hold a list of texts")
    return values
