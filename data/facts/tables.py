"""Facts from rows of tables: our own columns, known_1000, and CounterFact's objects.

CounterFact is of Meng et al. (2022), "Locating and Editing Factual Associations in
GPT", https://arxiv.org/abs/2202.05262.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NotRequired, TypedDict

from circuitcut.data.facts.records import (
    SUBJECT_SLOT,
    Fact,
    checked_prompt,
    filled,
)
from circuitcut.data.tables import TableRow
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import check_type, shown, shown_names

ONE_RELATION = "facts"
"""The relation of rows that name none."""
Column = Literal[
    "subject",
    "relation",
    "object",
    "prompts",
    "neighbourhood",
    "counterfactual",
    "choices",
    "retained",
    "language",
    "fact",
]
COLUMNS: dict[Column, tuple[str, ...]] = {
    "subject": ("subject", "sub_label", "head"),
    "relation": ("relation", "relation_id", "predicate"),
    "object": ("object", "obj_label", "attribute", "answer", "target", "target_true"),
    "prompts": ("prompts", "prompt", "paraphrases", "question", "template"),
    "neighbourhood": ("neighbourhood", "neighborhood", "neighborhood_prompts"),
    "counterfactual": ("counterfactual", "target_new", "target_false"),
    "choices": ("choices", "candidates", "rivals", "distractors"),
    "retained": ("retained", "retain", "retained_text", "retain_text"),
    "language": ("language", "lang"),
    "fact": ("fact", "fact_id"),
}
"""Usual names of each column, the first that a row has counts; case, spaces, hyphens
and underscores make no difference."""
_SLOTS = ("{}", SUBJECT_SLOT)


_Object = TypedDict("_Object", {"str": str})  # noqa: UP013 (a field named str)


class _Rewrite(TypedDict):
    prompt: str
    subject: str
    target_true: _Object
    target_new: NotRequired[_Object]
    relation_id: NotRequired[str]


class _CounterFact(TypedDict):
    requested_rewrite: _Rewrite
    paraphrase_prompts: NotRequired[list[str]]
    neighborhood_prompts: NotRequired[list[str]]


def facts_of(rows: Sequence[TableRow]) -> tuple[list[Fact], list[str]]:
    """The facts of a table, and the texts to retain beside them.

    Raises:
        UserError: When a column is missing or a row is malformed; the message names
            file and line.
    """
    facts, texts = [], []
    firsts: dict[str, Fact] = {}
    for row in rows:
        if "requested_rewrite" in row.values:
            facts.append(_counterfact(row))
            continue
        text = _value(row, "retained")
        if isinstance(text, str):
            texts.append(" ".join(text.split()))
        is_text_alone = all(
            _value(row, part) is None for part in ("subject", "object", "prompts")
        )
        if text is None or not is_text_alone:
            facts.append(_fact(row, firsts))
    return facts, list(dict.fromkeys(texts))


def column_of(row: TableRow, column: Column) -> str | None:
    """The row's name of a column; None where it has none."""
    named = {_plain(name): name for name in reversed(row.values)}
    return next((named[name] for name in COLUMNS[column] if name in named), None)


def text_of(row: TableRow, column: Column) -> str:
    """The row's text of a column that it must have.

    Raises:
        UserError: When the column is missing, or holds no text and no number.
    """
    name = column_of(row, column)
    if name is None:
        raise UserError(
            f"{row.where}: a row must have a column {' or '.join(COLUMNS[column][:2])},"
            f" got {shown_names(row.values)}"
        )
    return _as_text(row.values[name], f"{row.where}: column {name!r}")


def _fact(row: TableRow, firsts: dict[str, Fact]) -> Fact:
    """The fact of a row, the same as the first one with its number, if it has one."""
    subject, answer = text_of(row, "subject"), text_of(row, "object")
    has_relation = _value(row, "relation") is not None
    counterfactual = _value(row, "counterfactual")
    prompts = tuple(
        _prompt(text, subject, row.where) for text in _texts(row, "prompts")
    )
    if not prompts:
        name = column_of(row, "prompts")
        raise UserError(
            f"{row.where}: a fact must have a prompt that asks for its object, got none"
            f" in {f'column {name!r}' if name else shown_names(row.values)}"
        )
    found = Fact(
        subject,
        text_of(row, "relation") if has_relation else ONE_RELATION,
        answer,
        prompts,
        neighbourhood=tuple(
            checked_prompt(text, row.where) for text in _texts(row, "neighbourhood")
        ),
        counterfactual=None
        if counterfactual is None
        else text_of(row, "counterfactual"),
        choices=tuple(text for text in _texts(row, "choices") if text != answer),
        where=row.where,
        language="" if _value(row, "language") is None else text_of(row, "language"),
    )
    if _value(row, "fact") is None:
        return found
    first = firsts.setdefault(text_of(row, "fact"), found)
    return replace(found, same_as=(first.subject, first.relation, first.object))


def _prompt(text: str, subject: str, where: str) -> str:
    for slot in _SLOTS:
        if slot in text:
            return filled(text, subject, slot, where)
    if subject not in text:
        raise UserError(
            f"{where}: a prompt must hold its subject {shown(subject)}, or "
            f"{' or '.join(_SLOTS)} in its place, got {shown(text)}"
        )
    return checked_prompt(text, where)


def _counterfact(row: TableRow) -> Fact:
    """An object of CounterFact: a prompt with `{}`, and its paraphrases as they are."""
    check_type(row.values, _CounterFact, row.where)
    rewrite: _Rewrite = row.values["requested_rewrite"]
    subject = _as_text(rewrite["subject"], f"{row.where}: subject")
    further = row.values.get("paraphrase_prompts", [])
    near = row.values.get("neighborhood_prompts", [])
    new = rewrite.get("target_new")
    return Fact(
        subject,
        rewrite.get("relation_id", "").strip() or ONE_RELATION,
        _as_text(rewrite["target_true"]["str"], f"{row.where}: target_true"),
        (
            filled(rewrite["prompt"], subject, "{}", row.where),
            *(checked_prompt(text, row.where) for text in further),
        ),
        neighbourhood=tuple(checked_prompt(text, row.where) for text in near),
        counterfactual=None
        if new is None
        else _as_text(new["str"], f"{row.where}: target_new"),
        where=row.where,
    )


def _texts(row: TableRow, column: Column) -> list[str]:
    """A cell as a list of texts: a list, JSON, or separated by `|`."""
    value = _value(row, column)
    if value is None:
        return []
    where = f"{row.where}: column {column_of(row, column)!r}"
    if isinstance(value, str):
        value = _listed(value, where)
    values = value if isinstance(value, list) else [value]
    return [_as_text(part, where) for part in values if part != ""]


def _listed(text: str, where: str) -> Any:
    if not text.lstrip().startswith('["'):
        return [part.strip() for part in text.split("|")]
    try:
        return parse_json(text)
    except JsonProblem as error:
        raise UserError(f"{where}: malformed JSON: {error}") from None


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must hold text, got {shown(value)}")
    return " ".join(value.split())


def _value(row: TableRow, column: Column) -> Any:
    """The row's value of a column; None where it has none or is blank."""
    value = row.values.get(column_of(row, column) or "")
    return None if isinstance(value, str) and not value.strip() else value


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())
