"""Tables from local files: CSV, TSV, JSON and JSON Lines, gzipped or not."""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcut.data.hub import load_hub
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, lines_of, read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import shown

TABLE_FORMATS = ("csv", "tsv", "json", "jsonl")
_BY_SUFFIX = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl"}


@dataclass(frozen=True)
class TableRow:
    """One row and its place in the file, for error messages."""

    where: str
    values: dict[str, Any]


def suffix_of(path: Path) -> str:
    """The last suffix in lower case, `.gz` ignored."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def table_format(path: Path) -> str | None:
    """The table format that the name of `path` stands for, if any."""
    return _BY_SUFFIX.get(suffix_of(path))


def read_tables(path: Path, data_format: str) -> list[TableRow]:
    """Rows of a file, or of all tables of a folder in the order of their names.

    Args:
        path: File or folder.
        data_format: One of `TABLE_FORMATS`; `auto` reads it from the file's name.

    Raises:
        UserError: When there is no table or a row is malformed; the message names file
            and line.
    """
    rows: list[TableRow] = []
    for file in _files_of(path):
        file_format = table_format(file) if data_format == "auto" else data_format
        if file_format not in TABLE_FORMATS:
            raise UserError(
                f"--data_format must be one of {', '.join(TABLE_FORMATS)} for "
                f"{file}, got {data_format!r}; give --data_format or rename the file"
            )
        rows += read_table(file, file_format)
    return rows


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in files_in(path) if table_format(file)]
    if not files:
        raise UserError(
            f"data folder {path} must hold .csv, .tsv, .json or .jsonl files, got none"
        )
    return files


def read_hub_table(
    name: str, config: str | None, revision: str | None
) -> list[TableRow]:
    """Rows of every part of a hub data set.

    Raises:
        UserError: When the data set cannot be loaded.
    """
    return [
        TableRow(f"{name}, {part} row {number}", dict(row))
        for part, table in load_hub(name, config, revision).items()
        for number, row in enumerate(table)
    ]


def read_table(path: Path, data_format: str) -> list[TableRow]:
    """Every row of a table as a mapping from column names to values.

    Raises:
        UserError: When the file is malformed (the message names file and line) or has
            no rows.
    """
    text = read_text(path)
    if data_format == "json":
        rows = list(_json_rows(path, text))
    elif data_format == "jsonl":
        rows = list(_json_line_rows(path, text))
    else:
        rows = list(_separated_rows(path, text, "\t" if data_format == "tsv" else ","))
    if not rows:
        raise UserError(f"data file {path} must hold at least one row, got none")
    return rows


def _separated_rows(path: Path, text: str, delimiter: str) -> Iterator[TableRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _distinct(where, fields)
            elif len(fields) != len(header):
                raise UserError(
                    f"{where}: a row must have {len(header)} fields, got {len(fields)}"
                    "; quote fields that hold the separator"
                )
            else:
                yield TableRow(where, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed table: {error}") from None


def _distinct(where: str, header: list[str]) -> list[str]:
    named = [name for name in header if name.strip()]  # spreadsheets leave some empty
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise UserError(
            f"{where}: the names of columns must differ, got {shown(twice)} twice"
        )
    return header


def _json_rows(path: Path, text: str) -> Iterator[TableRow]:
    try:
        entries = parse_json(text)
    except JsonProblem as error:
        line = f", line {error.line}" if error.line else ""
        raise UserError(f"{path}{line}: malformed JSON: {error}") from None
    if not isinstance(entries, list):
        raise UserError(
            f"{path}, line 1: JSON must hold a list of objects, got {shown(entries)}; "
            "one object a line is .jsonl"
        )
    for i, entry in enumerate(entries, start=1):
        yield _object_row(f"{path}, entry {i}", entry)


def _json_line_rows(path: Path, text: str) -> Iterator[TableRow]:
    for number, line in enumerate(lines_of(text), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except JsonProblem as error:
            raise UserError(f"{where}: malformed JSON: {error}") from None
        yield _object_row(where, entry)


def _object_row(where: str, entry: Any) -> TableRow:
    if not isinstance(entry, dict):
        raise UserError(
            f"{where}: an entry must be an object with named fields, got {shown(entry)}"
        )
    return TableRow(where, entry)
