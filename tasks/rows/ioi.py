"""Prompts with two names as rows of a batch, with the token positions of the names."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Int

from circuitcut.data.ioi.records import IoiKind, IoiRecord, completed
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET
from circuitcut.tasks.language_rows import (
    Row,
    Tokens,
    targets_of,
    tokenize,
    without_end,
)

MIN_NAMES = 20
KINDS: tuple[IoiKind, ...] = ("ioi", "three_names", "text", "copy", "wiki")
POSITIONS = ("io_position", "s1_position", "s2_position", "end_position")
_NO_NUMBERS = dict.fromkeys((*POSITIONS, "io_id", "s_id"), -1)


def one_token_names(names: Iterable[str], tokenizer: Any) -> dict[str, int]:
    """The token of each name that is a single token after a word; names are sorted.

    Raises:
        UserError: When fewer than 20 names are single tokens.
    """
    candidates = sorted(set(names))
    texts = [f"to {name}" for name in candidates]
    name_ids: dict[str, int] = {}
    for name, text, tokens in zip(
        candidates, texts, _tokens(tokenizer, texts, 64), strict=True
    ):
        where = _places(name, text, tokens)
        if len(where) == 1 and tokens.ids[where[0]] != tokenizer.unk_token_id:
            name_ids[name] = tokens.ids[where[0]]
    if len(name_ids) < MIN_NAMES:
        raise UserError(
            f"tokenizer without one-token names: {len(name_ids)} of {len(candidates)} "
            f"names are single tokens, at least {MIN_NAMES} must be; use another model "
            "or prompts with more common names"
        )
    return name_ids


def ioi_rows(
    records: Sequence[IoiRecord],
    tokenizer: Any,
    name_ids: Mapping[str, int],
    *,
    unseen_names: frozenset[str],
    max_length: int,
    prefix: Sequence[int] = (),
) -> list[Row]:
    """Rows of all records, prompts first.

    Prompts with a name of several tokens and texts of a single token are left out.
    """
    ordered = sorted(records, key=lambda record: KINDS.index(record.kind))
    texts = [completed(record) for record in ordered]
    paired = [record.corrupted or "" for record in ordered]
    coded = _tokens(tokenizer, texts, max_length + 1, prefix)
    corrupted = _tokens(tokenizer, paired, max_length, prefix)
    known = frozenset(name_ids.values())
    rows: list[Row] = []
    for i, (record, tokens) in enumerate(zip(ordered, coded, strict=True)):
        if record.kind == "ioi":
            row = _prompt_row(
                record, tokens, corrupted[i], name_ids, known, i, unseen_names
            )
        else:
            row = _text_row(record, tokens, known, i) if len(tokens.ids) > 1 else None
        if row is not None:
            rows.append(row)
    return rows


def _tokens(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, prefix: Sequence[int] = ()
) -> list[Tokens]:
    rows = tokenize(tokenizer, texts, max_tokens=max_tokens, prefix=prefix)
    return [without_end(row) for row in rows]


def _prompt_row(
    record: IoiRecord,
    tokens: Tokens,
    corrupted: Tokens,
    name_ids: Mapping[str, int],
    known: Set[int],
    cluster: int,
    unseen_names: frozenset[str],
) -> Row | None:
    """The prompt without its last token, the answer.

    None when a name is not a single token or not at the expected positions.
    """
    text = completed(record)
    io = _places(record.io, text, tokens)
    subject = _places(record.subject, text, tokens)
    last = len(tokens.ids) - 1
    fits = len(io) == 2 and len(subject) >= 2 and io[1] == last
    if not fits or not {record.io, record.subject} <= name_ids.keys():
        return None
    positions = (io[0], subject[0], subject[-1], last - 1)
    numbers = dict(zip(POSITIONS, positions, strict=True)) | {
        "kind": KINDS.index("ioi"),
        "io_id": tokens.ids[last],
        "s_id": name_ids[record.subject],
    }
    paired = corrupted.ids
    if record.corrupted is None or len(paired) != last:
        places = ([io[0]], subject[:1], subject[1:])
        paired = _with_other_names(record, tokens.ids[:last], places, name_ids)
    is_target_name = np.isin(np.arange(1, last + 1), [*io, *subject])
    targets = _predictable(tokens, known)
    return Row(
        inputs=np.array(tokens.ids[:-1]),
        targets=targets,
        real=~np.array(tokens.special[:-1]),
        concept=np.arange(last) == last - 1,
        retain=~is_target_name & (targets != NO_TARGET),
        cluster=cluster,
        unseen={record.io, record.subject} <= unseen_names,
        numbers=numbers,
        corrupted=np.array(paired),
    )


def _text_row(record: IoiRecord, tokens: Tokens, known: Set[int], cluster: int) -> Row:
    retained = record.kind in ("text", "wiki")
    targets = _predictable(tokens, frozenset() if retained else known)
    return Row(
        inputs=np.array(tokens.ids[:-1]),
        targets=targets,
        real=~np.array(tokens.special[:-1]),
        concept=np.zeros(len(targets), bool),
        retain=retained & (targets != NO_TARGET),
        cluster=cluster,
        unseen=retained,
        numbers=_NO_NUMBERS | {"kind": KINDS.index(record.kind)},
    )


def _predictable(tokens: Tokens, known: Set[int]) -> Int[np.ndarray, "seq"]:
    """The next tokens as targets, except special ones and names at their first mention.

    A name at its first mention is random and cannot be predicted. With such targets a
    small model learns the task several hundred steps later.
    """
    seen: set[int] = set()
    targets = np.array(targets_of(tokens))
    for position, token in enumerate(tokens.ids):
        if position and token in known and token not in seen:
            targets[position - 1] = NO_TARGET
        seen.add(token)
    return targets


def _places(name: str, text: str, tokens: Tokens) -> list[int]:
    """Positions of all occurrences of `name`; [] unless each is a single token."""
    positions = []
    for match in re.finditer(rf"\b{re.escape(name)}\b", text):
        for position, (start, end) in enumerate(tokens.spans):
            if start < match.end() and match.start() < end:
                if text[start:end].strip() != name:
                    return []
                positions.append(position)
                break
    return positions


def _with_other_names(
    record: IoiRecord,
    inputs: list[int],
    places: Sequence[Sequence[int]],
    name_ids: Mapping[str, int],
) -> list[int]:
    """The prompt with three other names, drawn with a seed made from its text."""
    rng = random.Random(record.text)
    new_names = [name for name in name_ids if name not in (record.io, record.subject)]
    corrupted = list(inputs)
    for positions, name in zip(places, rng.sample(new_names, 3), strict=True):
        for position in positions:
            corrupted[position] = name_ids[name]
    return corrupted
