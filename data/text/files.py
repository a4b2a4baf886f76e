"""Toxic and neutral texts from user files: labelled tables, and plain retain text."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from circuitcut.data.hub import HUB_PREFIX
from circuitcut.data.tables import (
    TABLE_FORMATS,
    TableRow,
    read_hub_table,
    read_table,
    suffix_of,
    table_format,
)
from circuitcut.data.text.cleaning import clean, clean_with_spans
from circuitcut.data.text.records import TextRecord
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, lines_of, read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import shown_names

_TEXT_NAMES = "text tweet comment_text comment content sentence post body message"
TEXT_COLUMNS = (*_TEXT_NAMES.split(), "test_case")
_LABEL_NAMES = "toxic toxicity is_toxic label labels label_gold class hate offensive"
LABEL_COLUMNS = (*_LABEL_NAMES.split(), "hateful")
SPANS_COLUMN = "spans"
# Davidson et al. (2017): votes in these columns, and `class` 2 for neither
_VOTE_COLUMNS = {"hate_speech", "offensive_language", "neither", "class"}
_TOXIC = "toxic hateful hate offensive abusive insult hatespeech true yes"
_NEUTRAL = "toxic hateful hate offensive abusive"
_NEUTRAL_WORDS = "normal neutral neither none clean false no ok"
_TOXIC_NAMES = frozenset(_TOXIC.split())
_NEUTRAL_NAMES = frozenset(
    [
        *_NEUTRAL_WORDS.split(),
        *(f"{no}{name}" for no in ("no", "non", "not") for name in _NEUTRAL.split()),
    ]
)
_TEXT_SUFFIXES = (".txt", ".text", ".tokens", ".raw", "")
_TITLE = re.compile(r"^\s*= [^=]")
CHUNK_WORDS = 80
TOXIC_FROM = 0.5
"""Scores at or above this are toxic."""


def read_rows(
    data: str, data_format: str, config: str | None, revision: str | None
) -> list[TableRow]:
    """Rows of a file, a folder or a hub data set; plain text has one column, `text`.

    Raises:
        UserError: When there are no files or a row is malformed; the message names file
            and line.
    """
    if data.startswith(HUB_PREFIX):
        return read_hub_table(data, config, revision)
    if data_format not in ("auto", "text", *TABLE_FORMATS):
        raise UserError(
            f"--data_format must be auto, text, {', '.join(TABLE_FORMATS)} for texts, "
            f"got {data_format!r}"
        )
    rows: list[TableRow] = []
    for path in _files_of(Path(data)):
        file_format = data_format
        if data_format == "auto":
            file_format = table_format(path) or "text"
        if file_format == "text":
            rows += _plain_rows(path)
        else:
            rows += read_table(path, file_format)
    return rows


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in files_in(path) if file.is_file()]
    tables = [file for file in files if table_format(file)]
    texts = [file for file in files if suffix_of(file) in _TEXT_SUFFIXES[:-1]]
    if not tables and not texts:
        raise UserError(
            f"data folder {path} must hold .csv, .tsv, .json, .jsonl or .txt files, "
            "got none"
        )
    return tables or texts


def _plain_rows(path: Path) -> Iterable[TableRow]:
    """Lines in pieces of at most 80 words; a WikiText heading starts a document."""
    document = ""
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if _is_heading(line):
            if _TITLE.match(line):
                document = f"{path.name} {number}"
            continue
        words = line.split()
        for first in range(0, len(words), CHUNK_WORDS):
            text = " ".join(words[first : first + CHUNK_WORDS])
            values = {"text": text, "document": document or f"{path.name} {number}"}
            yield TableRow(f"{path}, line {number}", values)


def _is_heading(line: str) -> bool:
    """Whether a line has the form `= Title =` or `= = Section = =`."""
    line = line.strip()
    return len(line) > 3 and line.startswith("= ") and line.endswith(" =")


def labelled_texts(
    rows: Sequence[TableRow],
    *,
    text_column: str | None,
    label_column: str | None,
    concept_values: Sequence[str],
    all_toxic: bool,
) -> list[TextRecord]:
    """Toxic and neutral texts, cleaned, without duplicates.

    Args:
        rows: Rows of a table.
        text_column: Column of the text; None takes the first of `TEXT_COLUMNS`.
        label_column: Column of the label; None takes the first of `LABEL_COLUMNS`.
        concept_values: Labels that mean toxic; if empty, the usual names of labels.
        all_toxic: Whether all texts of a table without a label column are toxic.

    Raises:
        UserError: When a column or label is missing or its value is not understood. The
            message never contains a text.
    """
    if not rows:
        raise UserError("--data must hold at least one text, got none")
    text_column = _column(rows, text_column, TEXT_COLUMNS, "text_column")
    has_spans = SPANS_COLUMN in rows[0].values and label_column is None
    known = [name for name in LABEL_COLUMNS if name in rows[0].values]
    unlabelled = label_column is None and not known
    is_plain = rows[0].values.keys() == {"text", "document"}
    if unlabelled and is_plain and not all_toxic:
        raise UserError(
            f"{rows[0].where.split(',')[0]} has no labels: all its texts count as "
            "toxic, so name texts to retain with --retain_data"
        )
    if has_spans or (unlabelled and all_toxic):
        toxic = [True] * len(rows)
    else:
        label_column = _column(rows, label_column, LABEL_COLUMNS, "label_column")
        toxic = _toxic_flags(rows, label_column, concept_values)
    records = [
        _record(row, text_column, flag, has_spans)
        for row, flag in zip(rows, toxic, strict=True)
    ]
    return _distinct(record for record in records if record is not None)


def read_retained(
    data: str, text_column: str | None, flag: str = "--retain_data"
) -> list[TextRecord]:
    """Texts of the file, folder or hub data set that a flag names.

    Args:
        text_column: Ignored in texts that stand beside others, of `--retain_data`,
            where it is the column of the others.

    Raises:
        UserError: When it cannot be read, or has no column of text or no text in it.
    """
    rows = read_rows(data, "auto", None, None)
    if rows and flag == "--data" and text_column is not None:
        _column(rows, text_column, TEXT_COLUMNS, "text_column")
    texts = retained_texts(rows, text_column) if rows else []
    if not texts:
        what = "name another file"
        if flag == "--retain_data":
            what = "give at least 10 texts, or leave it out"
        raise UserError(f"{flag} {data} holds no text; {what}")
    return texts


def retained_texts(
    rows: Sequence[TableRow], text_column: str | None
) -> list[TextRecord]:
    """All texts of the rows as further text to retain."""
    if not rows:
        return []
    if text_column is not None and text_column not in rows[0].values:
        text_column = None
    column = _column(rows, text_column, TEXT_COLUMNS, "text_column")
    texts = [(clean(_text(row, column)), row.values) for row in rows]
    return _distinct(
        TextRecord(text, "wiki", document=str(values.get("document", "")), unseen=True)
        for text, values in texts
        if text
    )


def _distinct(records: Iterable[TextRecord]) -> list[TextRecord]:
    """The first record of every text."""
    first: dict[str, TextRecord] = {}
    for record in records:
        first.setdefault(record.text, record)
    return list(first.values())


def _record(
    row: TableRow, text_column: str, toxic: bool, has_spans: bool
) -> TextRecord | None:
    text = _text(row, text_column)
    if not has_spans:
        text = clean(text)
        return TextRecord(text, "toxic" if toxic else "neutral") if text else None
    text, spans = clean_with_spans(text, _offsets(row, len(text)))
    return TextRecord(text, "toxic", spans) if spans else None


def _offsets(row: TableRow, n_characters: int) -> list[int]:
    value = row.values.get(SPANS_COLUMN)
    try:
        offsets = parse_json(value) if isinstance(value, str) else value
    except JsonProblem:
        offsets = None
    if not isinstance(offsets, list) or not all(
        type(offset) is int and 0 <= offset < n_characters for offset in offsets
    ):
        raise UserError(
            f"{row.where}: column 'spans' must hold a list of character offsets into "
            "the text, such as [3, 4, 5]"
        )
    return list(offsets)


def _column(
    rows: Sequence[TableRow], name: str | None, usual: Sequence[str], option: str
) -> str:
    columns = list(rows[0].values)
    if name is not None and name in columns:
        return name
    if name is None:
        for usual_name in usual:
            if usual_name in columns:
                return usual_name
    got = "none of the usual names" if name is None else repr(name)
    raise UserError(
        f"--{option} must name a column of {rows[0].where.split(',')[0]} "
        f"({shown_names(columns)}), got {got}"
    )


def _text(row: TableRow, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: column {column!r} must hold text")
    return value


def _toxic_flags(
    rows: Sequence[TableRow], column: str, concept_values: Sequence[str]
) -> list[bool]:
    values = [_label(row, column) for row in rows]
    if concept_values:
        toxic_values = set(concept_values)
        missing = sorted(toxic_values - set(values))
        if missing:
            raise UserError(
                f"--concept_values must occur in column {column!r}, got "
                f"{', '.join(missing)}; the column holds "
                f"{shown_names(sorted(set(values)), 10)}"
            )
        return [value in toxic_values for value in values]
    if column == "class" and rows[0].values.keys() >= _VOTE_COLUMNS:
        return [value != "2" for value in values]
    return [
        _means_toxic(value, row, column)
        for value, row in zip(values, rows, strict=True)
    ]


def _label(row: TableRow, column: str) -> str:
    value: Any = row.values.get(column)
    if value is None or isinstance(value, (list, dict)) or str(value).strip() == "":
        raise UserError(f"{row.where}: column {column!r} must hold a label")
    return str(value).strip()


def _means_toxic(value: str, row: TableRow, column: str) -> bool:
    name = re.sub(r"[-_ ]", "", value.lower())
    if name in _TOXIC_NAMES:
        return True
    if name in _NEUTRAL_NAMES:
        return False
    try:
        score = float(value)
    except ValueError:
        score = float("nan")
    if not 0.0 <= score <= 1.0:
        raise UserError(
            f"{row.where}: column {column!r} must say toxic or not, or hold a score "
            "from 0 to 1; name the toxic labels with --concept_values"
        )
    return score >= TOXIC_FROM
