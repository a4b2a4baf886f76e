"""Prompts with answers from tables, under the usual names of their columns."""

import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuitcut.data.ioi.files import MOST_CHARACTERS, choice_of, names_of
from circuitcut.data.prompts.records import (
    COLUMNS,
    MASK,
    MASK_SPELLINGS,
    Column,
    PromptRecord,
)
from circuitcut.data.tables import TableRow
from circuitcut.data.text.records import TextRecord
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import shown, shown_names

MOST_RIVALS = 100
"""Rivals of one prompt that are taken from other rows."""
_CONTINUES = "##"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Columns:
    """The columns of prompts and answers that flags name."""

    prompt: str | None
    answer: str | None

    def of(self, row: TableRow, column: Column) -> str | None:
        """The row's name of a column; None where it has none."""
        given = {"prompt": self.prompt, "answer": self.answer}.get(column)
        if given is not None:
            return given if given in row.values else None
        named = {_plain(name): name for name in reversed(row.values)}
        return next((named[name] for name in COLUMNS[column] if name in named), None)

    def value(self, row: TableRow, column: Column) -> Any:
        """The row's value of a column; None where it has none or is blank."""
        value = row.values.get(self.of(row, column) or "")
        return None if isinstance(value, str) and not value.strip() else value


def prompt_records(
    rows: Sequence[TableRow], prompt_column: str | None, answer_column: str | None
) -> tuple[list[PromptRecord], list[TextRecord]]:
    """Checked prompts without duplicates, and the texts to retain beside them.

    Args:
        prompt_column: Column of the prompt; None takes the first of its usual names.
        answer_column: Column of the answer, likewise.

    Raises:
        UserError: When a column is missing, a row is malformed, or two rows give one
            prompt different answers; the message names file and line.
    """
    columns = _Columns(prompt_column, answer_column)
    _tell_unread(rows, columns)
    texts = dict.fromkeys(
        TextRecord(text, "wiki", unseen=True)
        for row in rows
        if (text := _text(row, columns, "retained")) is not None
    )
    first: dict[str, PromptRecord] = {}
    relations: dict[str, str | None] = {}
    for row in rows:
        if _is_text_alone(row, columns):
            continue
        record = _record(row, columns)
        known = first.setdefault(record.text, record)
        if known.answer != record.answer:
            raise UserError(
                f"{row.where}: the answer of a prompt must be the same in all rows, "
                f"got {record.answer!r}, and {known.answer!r} in {known.where}"
            )
        relations.setdefault(record.text, _text(row, columns, "relation"))
    records = list(first.values())
    return _with_rivals(records, [relations[r.text] for r in records]), list(texts)


def _record(row: TableRow, columns: _Columns) -> PromptRecord:
    column = columns.of(row, "prompt") or _missing(row, columns, "prompt")
    prompt = _with_one_mask(_string(row, column).strip(), row)
    if len(prompt) > MOST_CHARACTERS:
        raise UserError(
            f"{row.where}: a prompt must have at most {MOST_CHARACTERS:,} characters, "
            f"got {len(prompt):,}"
        )
    answer, rivals = _answer(row, columns, prompt)
    continues = answer.startswith(_CONTINUES)
    if continues and MASK in prompt:
        raise UserError(
            f"{row.where}: an answer that begins with {_CONTINUES} must follow its "
            f"prompt, which has a {MASK}; put the beginning of the word into the answer"
        )
    return PromptRecord(
        text=prompt,
        answer=answer.removeprefix(_CONTINUES),
        continues=continues,
        rivals=tuple(rival.removeprefix(_CONTINUES) for rival in rivals),
        counterfactual=_counterfactual(row, columns, prompt),
        group=_text(row, columns, "group") or "",
        where=row.where,
    )


def _with_one_mask(text: str, row: TableRow) -> str:
    for spelling in MASK_SPELLINGS:
        text = text.replace(spelling, MASK)
    if not text.replace(MASK, "").strip():
        raise UserError(f"{row.where}: a prompt must hold more than a {MASK}")
    if text.count(MASK) > 1:
        raise UserError(
            f"{row.where}: a prompt must have at most one {MASK}, got "
            f"{text.count(MASK)}; one answer is predicted a row"
        )
    return text


def _answer(
    row: TableRow, columns: _Columns, prompt: str
) -> tuple[str, tuple[str, ...]]:
    """The answer and the rivals that the row names."""
    column = columns.of(row, "answer")
    if column is None and columns.answer is None:
        if "choices" in row.values and "answerKey" in row.values:
            answer = choice_of(row)
            return answer, _rivals(row, columns, answer)
        if columns.of(row, "counterfactual") is not None:
            subject, answer = names_of(row, prompt)
            return answer, (subject,)
    answer = _string(row, column or _missing(row, columns, "answer")).strip()
    return answer, _rivals(row, columns, answer)


def _rivals(row: TableRow, columns: _Columns, answer: str) -> tuple[str, ...]:
    value = columns.value(row, "rivals")
    if value is None:
        return ()
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, list) or not all(
        type(rival) in (str, int, float) for rival in value
    ):
        raise UserError(
            f"{row.where}: column {columns.of(row, 'rivals')!r} must hold texts, got "
            f"{shown(value)}"
        )
    names = dict.fromkeys(str(rival).strip() for rival in value)
    rivals = tuple(name for name in names if name and name != answer)
    if not rivals:
        raise UserError(
            f"{row.where}: column {columns.of(row, 'rivals')!r} must hold a wrong "
            f"answer, got only {answer!r}; leave it empty for none"
        )
    return rivals


def _listed(text: str) -> Any:
    """A cell as a list: JSON, or separated by `|` or, without one, by commas."""
    if text.lstrip().startswith("["):
        try:
            return parse_json(text)
        except JsonProblem:
            return None
    return text.split("|" if "|" in text else ",")


def _counterfactual(row: TableRow, columns: _Columns, prompt: str) -> str | None:
    value = columns.value(row, "counterfactual")
    if isinstance(value, Mapping):
        value = value.get("prompt")
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{row.where}: column {columns.of(row, 'counterfactual')!r} must hold text"
        )
    paired = _with_one_mask(value.strip(), row)
    if (MASK in paired) != (MASK in prompt):
        raise UserError(
            f"{row.where}: prompt and counterfactual prompt must both have a {MASK}, "
            "or neither"
        )
    return paired


def _with_rivals(
    records: Sequence[PromptRecord], relations: Sequence[str | None]
) -> list[PromptRecord]:
    """Prompts without rivals get answers of other rows: of their relation, or of all.

    At most `MOST_RIVALS` of them, drawn with a seed made from the prompt.
    """
    answers: dict[str | None, dict[str, None]] = {None: {}}
    for record, relation in zip(records, relations, strict=True):
        for name in {None, relation}:
            answers.setdefault(name, {})[record.answer] = None
    completed: list[PromptRecord] = []
    for record, relation in zip(records, relations, strict=True):
        if not record.rivals:
            named = relation is not None and len(answers[relation]) > 1
            others = _others(list(answers[relation if named else None]), record)
            record = replace(record, rivals=others, named=named)
        completed.append(record)
    return completed


def _others(answers: Sequence[str], record: PromptRecord) -> tuple[str, ...]:
    if len(answers) > MOST_RIVALS + 1:
        rng = random.Random(record.text)
        answers = rng.sample(answers, MOST_RIVALS + 1)
    others = [answer for answer in answers if answer != record.answer]
    return tuple(others[:MOST_RIVALS])


def _is_text_alone(row: TableRow, columns: _Columns) -> bool:
    """Whether a row holds a text to retain, and no prompt and no answer."""
    has_text = columns.value(row, "retained") is not None
    parts: tuple[Column, ...] = ("prompt", "answer")
    return has_text and all(columns.value(row, part) is None for part in parts)


def _text(row: TableRow, columns: _Columns, column: Column) -> str | None:
    value = columns.value(row, column)
    if value is None or isinstance(value, Mapping | list):
        return None
    return " ".join(str(value).split())


def _string(row: TableRow, column: str) -> str:
    value = row.values[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{row.where}: column {column!r} must hold text, got {shown(value)}"
        )
    return value


def _missing(row: TableRow, columns: _Columns, column: Column) -> str:
    given = columns.prompt if column == "prompt" else columns.answer
    flag = "--text_column" if column == "prompt" else "--label_column"
    names = shown_names(row.values)
    if given is not None:
        raise UserError(f"{row.where}: {flag} {given!r} must be a column, got {names}")
    raise UserError(
        f"{row.where}: a row must have a column {' or '.join(COLUMNS[column][:2])}, "
        f"got {names}; name it with {flag}"
    )


def _tell_unread(rows: Sequence[TableRow], columns: _Columns) -> None:
    """Log the columns that have no meaning here: one of them may be misspelt."""
    read = {columns.of(row, column) for row in rows[:1] for column in COLUMNS}
    unread = [str(name) for name in rows[0].values if name not in read]
    if unread:
        file = rows[0].where.split(",")[0]
        logger.info("%s: columns that are not read: %s", file, ", ".join(unread))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())
