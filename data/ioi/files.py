"""Indirect-object prompts from user files: prompt/answer or clean/corrupted tables."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.data.ioi.generated import base_mixture, plain_texts
from circuitcut.data.ioi.records import IoiCorpus, IoiRecord
from circuitcut.data.ioi.words import NAMES
from circuitcut.data.tables import TableRow
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown, shown_names

HELD_OUT_NAME_SHARE = 0.2
SPLIT_SHARES = {"mask": 0.5, "tune": 0.15, "relearn": 0.25, "heldout": 0.1}
FEWEST = 10
"""Prompts, each with names of its own, that fill four splits."""
N_BASE = 10_000
N_PLAIN = 400
MOST_CHARACTERS = 20_000
"""Of one prompt; no model here has room for more."""


def prompt_records(
    rows: Sequence[TableRow], prompt_column: str | None, answer_column: str | None
) -> list[IoiRecord]:
    """Checked prompts from the rows of tables, without duplicates."""
    records = [_record(row, prompt_column, answer_column) for row in rows]
    first: dict[str, IoiRecord] = {}
    for record in records:
        first.setdefault(record.text, record)
    return list(first.values())


def _record(
    row: TableRow, prompt_column: str | None, answer_column: str | None
) -> IoiRecord:
    values, where = row.values, row.where
    column = prompt_column or _first_of(row, "prompt", "clean")
    text = _string(row, column).rstrip()
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{where}: a prompt must have at most {MOST_CHARACTERS:,} characters, got "
            f"{len(text):,}"
        )
    metadata = values.get("metadata")
    details: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else {}
    subject = values.get("subject") or details.get("subject") or ""
    if not isinstance(subject, str):
        raise UserError(f"{where}: subject must be text, got {shown(subject)}")
    subject = subject.strip()
    if answer_column or "answer" in values:
        io = _string(row, answer_column or "answer").strip()
    elif "choices" in values:
        io = choice_of(row)
    else:
        subject, io = names_of(row, text)
    if _count(io, text) != 1:
        raise UserError(f"{where}: the answer must occur exactly once in the prompt")
    subject = subject or _repeated_name(row, text, io)
    if subject == io or _count(subject, text) < 2:
        raise UserError(f"{where}: another name must occur twice in the prompt")
    return IoiRecord(text, "ioi", io, subject, _corrupted(values))


def _first_of(row: TableRow, *names: str) -> str:
    for name in names:
        if name in row.values:
            return name
    raise UserError(
        f"{row.where}: a row must have a column {' or '.join(names)}, "
        f"got {shown_names(row.values)}; name it with --text_column"
    )


def _string(row: TableRow, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: column {column!r} must hold text")
    return value


def choice_of(row: TableRow) -> str:
    """The text in `choices` that `answerKey` counts to.

    Raises:
        UserError: When it is no index into them.
    """
    choices, key = row.values["choices"], row.values.get("answerKey")
    if (
        not isinstance(choices, list)
        or type(key) is not int
        or not 0 <= key < len(choices)
        or not isinstance(choices[key], str)
    ):
        raise UserError(
            f"{row.where}: answerKey must be an index into choices, a list of texts, "
            f"got {shown(key)}"
        )
    return str(choices[key]).strip()


def names_of(row: TableRow, text: str) -> tuple[str, str]:
    """Subject and indirect object of a prompt that introduces a pair `X and Y`.

    Raises:
        UserError: When it introduces none of which one name is repeated.
    """
    for first, second in re.findall(r"\b(\w+) and (\w+)\b", text):
        counts = _count(first, text), _count(second, text)
        if first[:1].isupper() and second[:1].isupper() and sorted(counts) == [1, 2]:
            return (first, second) if counts[0] == 2 else (second, first)
    raise UserError(
        f"{row.where}: the prompt must introduce two names 'X and Y' of which one is "
        "repeated, or have a column answer"
    )


def _repeated_name(row: TableRow, text: str, io: str) -> str:
    words = dict.fromkeys(re.findall(r"\b[^\W\d_][\w'-]*", text))
    names = [
        word
        for word in words
        if word[0].isupper() and word != io and _count(word, text) > 1
    ]
    if len(names) != 1:
        raise UserError(
            f"{row.where}: exactly one other name must occur twice in the prompt, got "
            f"{len(names)}; name it in a column subject"
        )
    return names[0]


def _count(name: str, text: str) -> int:
    return len(re.findall(rf"\b{re.escape(name)}\b", text)) if name else 0


def _corrupted(values: Mapping[str, Any]) -> str | None:
    for column in ("corrupted", "abc_counterfactual"):
        value = values.get(column)
        if isinstance(value, Mapping):
            value = value.get("prompt")
        if isinstance(value, str) and value.strip():
            return value.rstrip()
    return None


def split_prompts(records: Sequence[IoiRecord], *, seed: int) -> IoiCorpus:
    """Split prompts so that one fifth of the names occurs in `heldout` only.

    Every prompt with such a name is held out; the other prompts are split at random.
    `base` is the built-in mixture with these names, and the prompts of `mask` and
    `relearn`.

    Raises:
        UserError: When a split has no prompt.
    """
    rng = random.Random(f"ioi prompts {seed}")
    names = sorted({name for record in records for name in (record.io, record.subject)})
    names = rng.sample(names, len(names))
    n_held_out = round(HELD_OUT_NAME_SHARE * len(names))
    held_out, known = frozenset(names[:n_held_out]), names[n_held_out:]
    rest = [record for record in records if not {record.io, record.subject} & held_out]
    rest = rng.sample(rest, len(rest))
    splits: dict[str, tuple[IoiRecord, ...]] = {}
    first = 0.0
    for split, part in SPLIT_SHARES.items():
        last = first + part * len(rest)
        splits[split] = tuple(rest[round(first) : round(last)])
        first = last
    splits["heldout"] += tuple(
        record for record in records if {record.io, record.subject} & held_out
    )
    for split, prompts in splits.items():
        if not prompts:
            raise UserError(
                f"split {split!r} of the prompts is empty: {len(records)} prompts with "
                f"{len(names)} names are too few; give at least {FEWEST}"
            )
    return IoiCorpus(_with_plain_texts(splits, known, sorted(held_out), seed), held_out)


def _with_plain_texts(
    splits: dict[str, tuple[IoiRecord, ...]],
    known: Sequence[str],
    held_out: Sequence[str],
    seed: int,
) -> dict[str, tuple[IoiRecord, ...]]:
    spare = [name for name in NAMES if name not in {*known, *held_out}]
    base = base_mixture(
        [*known, *spare[:40]], [*held_out, *spare[40:]], seed=seed, n=N_BASE
    )
    with_plain = {"base": (*base, *splits["mask"], *splits["relearn"])}
    for split, records in splits.items():
        rng = random.Random(f"ioi plain {split} {seed}")
        plain = dict.fromkeys(plain_texts(rng, N_PLAIN))
        with_plain[split] = (*records, *plain)
    return with_plain
