"""Prompts with one-token answers, and texts to retain, as rows of a batch.

A decoder predicts the answer at the last token of the prompt. An encoder predicts it at
its mask token; in a text to retain some of the tokens are masked, the same ones always.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from circuitcut.data.prompts.records import MASK, PromptRecord, around, places
from circuitcut.data.prompts.splits import FEWEST
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET
from circuitcut.tasks.language_rows import (
    Row,
    Tokens,
    targets_of,
    tokenize,
    without_end,
)

MASKED_SHARE = 0.15
"""Share of the tokens of a text that are masked for an encoder, as for BERT."""
PROMPT, TEXT = range(2)
"""`kind` of a row."""
_CARRIER = "to "
"""Stands before a rival whose prompt ends with a space, so that each is looked up once.
"""


@dataclass(frozen=True)
class Reader:
    """How a model reads a prompt."""

    tokenizer: Any
    masked: bool
    """The answer is predicted at a mask token, else after the last token."""
    max_length: int
    prefix: tuple[int, ...] = ()
    """Tokens before every text; see `prefix_ids`."""

    def tokens(self, texts: Sequence[str], n_more: int = 0) -> list[Tokens]:
        """Tokens of every text, at most `max_length` and `n_more`."""
        rows = tokenize(
            self.tokenizer,
            texts,
            max_tokens=self.max_length + n_more,
            prefix=self.prefix,
        )
        return rows if self.masked else [without_end(row) for row in rows]

    def around(self, record: PromptRecord) -> tuple[str, str]:
        """The text before and after the answer.

        For an encoder, a prompt without a mask has it at its end, before a full stop.
        """
        own = self.tokenizer.mask_token if self.masked else None
        text = record.text.replace(own, MASK) if own else record.text
        before, after = around(replace(record, text=text))
        return before, "." if self.masked and MASK not in text else after

    def question(self, record: PromptRecord) -> str:
        """The prompt as the model reads it, without the answer."""
        before, after = self.around(record)
        if self.masked:
            return f"{before}{self.tokenizer.mask_token}{after}"
        return before.rstrip()

    def answered(self, record: PromptRecord) -> str:
        """The prompt with its answer, and nothing behind it for a decoder."""
        before, after = self.around(record)
        return f"{before}{record.answer}{after if self.masked else ''}"

    def mask_position(self, tokens: Tokens) -> int:
        """Position of the only mask token."""
        return tokens.ids.index(self.tokenizer.mask_token_id)


@dataclass(frozen=True)
class PromptRows:
    """What a model can be asked of some prompts."""

    rows: Mapping[str, Row]
    """By the text of the prompt; `numbers` are those of a batch (see the task)."""
    rivals: Mapping[str, Int[np.ndarray, "rival"]]
    """Tokens of the rivals by the text of the prompt, the answer's not among them."""
    left_out: Mapping[str, tuple[PromptRecord, ...]]
    """Prompts that cannot be asked, by reason."""

    @property
    def n_left_out(self) -> int:
        """Number of prompts that cannot be asked."""
        return sum(map(len, self.left_out.values()))

    def reasons(self) -> str:
        """Why and which prompts were left out, in words."""
        return "; ".join(
            f"{reason}: {places(records)}" for reason, records in self.left_out.items()
        )


@dataclass(frozen=True)
class _Coded:
    """The tokens of a prompt that can be asked."""

    question: Tokens
    position: int
    """Where the answer is predicted."""
    answer: int
    corrupted: list[int] | None


def prompt_rows(records: Sequence[PromptRecord], reader: Reader) -> PromptRows:
    """Rows of the prompts whose answer is one token.

    Raises:
        UserError: When fewer than `FEWEST` are left, or a counterfactual prompt
            has another number of words and of tokens, or its mask elsewhere.
    """
    coded = _coded(records, reader)
    asked = [r for r, c in zip(records, coded, strict=True) if isinstance(c, _Coded)]
    rivals = _rival_ids(asked, reader)
    clusters = {
        group: number
        for number, group in enumerate(dict.fromkeys(map(_group, records)))
    }
    rows: dict[str, Row] = {}
    left_out: dict[str, list[PromptRecord]] = {}
    for record, found in zip(records, coded, strict=True):
        if isinstance(found, str):
            left_out.setdefault(found, []).append(record)
            continue
        others = rivals[record.text]
        others = rivals[record.text] = others[others != found.answer]
        if record.named and not len(others):
            reason = "prompts without a rival of a single token"
            left_out.setdefault(reason, []).append(record)
            continue
        cluster = clusters[_group(record)]
        rows[record.text] = _row(record, found, others, cluster, reader.masked)
    found_rows = PromptRows(rows, rivals, {k: tuple(v) for k, v in left_out.items()})
    if len(rows) < FEWEST:
        raise UserError(
            f"at least {FEWEST} prompts must have an answer that is a single token, "
            f"got {len(rows)} of {len(records)} prompts; {_more(found_rows)}"
        )
    return found_rows


def _more(rows: PromptRows) -> str:
    """What to do where too few prompts are left."""
    if not rows.left_out:
        return "give more prompts"
    return f"use another model or other answers (left out: {rows.reasons()})"


def _group(record: PromptRecord) -> str:
    return record.group or record.text


def answers_of(
    records: Sequence[PromptRecord], reader: Reader
) -> list[tuple[Tokens, int, int] | str]:
    """Tokens of every prompt, position and token of its answer, in order.

    The reason in words where it cannot be asked.
    """
    questions = reader.tokens([reader.question(record) for record in records], 1)
    answered = reader.tokens([reader.answered(record) for record in records], 1)
    found: list[tuple[Tokens, int, int] | str] = []
    for record, question, whole in zip(records, questions, answered, strict=True):
        placed = _placed(reader, record, question, whole)
        found.append(placed if isinstance(placed, str) else (question, *placed))
    return found


def _coded(records: Sequence[PromptRecord], reader: Reader) -> list[_Coded | str]:
    """Tokens of every prompt, or the reason why it cannot be asked.

    Raises:
        UserError: When a counterfactual prompt has another number of words and of
            tokens, or its mask elsewhere. One with as many words in more or fewer
            tokens is a matter of the tokenizer: its prompt is left out.
    """
    paired = [replace(r, text=r.counterfactual or r.text) for r in records]
    others = reader.tokens([reader.question(record) for record in paired], n_more=1)
    coded: list[_Coded | str] = []
    unaligned: list[tuple[PromptRecord, int, int]] = []
    for record, found, other in zip(
        records, answers_of(records, reader), others, strict=True
    ):
        if isinstance(found, str):
            coded.append(found)
            continue
        question, position, answer = found
        if not _aligned(reader, question, other):
            lengths = len(question.ids), len(other.ids)
            words = _n_words(record.text), _n_words(record.counterfactual or "")
            if words[0] != words[1] or lengths[0] == lengths[1]:
                unaligned.append((record, *lengths))
            coded.append("counterfactual prompts with another number of tokens")
            continue
        has_pair = record.counterfactual is not None
        corrupted = other.ids if has_pair else None
        coded.append(_Coded(question, position, answer, corrupted))
    if unaligned:
        record, n, n_other = unaligned[0]
        more = f" (and {len(unaligned) - 1} more rows)" if len(unaligned) > 1 else ""
        at = ", and the mask at the same one" if reader.masked else ""
        raise UserError(
            f"{record.where}: prompt and counterfactual prompt must have the same "
            f"number of tokens{at}, got {n} and {n_other}{more}; change these rows"
        )
    return coded


def _placed(
    reader: Reader, record: PromptRecord, question: Tokens, whole: Tokens
) -> tuple[int, int] | str:
    """Position and token of the answer, or the reason why it cannot be asked."""
    if len(question.ids) > reader.max_length:
        return f"prompts longer than --max_length {reader.max_length} tokens"
    if not reader.masked and any(c.isalnum() for c in reader.around(record)[1]):
        return "prompts that go on behind the answer, which a decoder does not read"
    if reader.masked:
        position = at = reader.mask_position(question)
    else:
        position, at = len(question.ids) - 1, len(question.ids)
    around_answer = whole.ids[:at], whole.ids[at + 1 :]
    around = question.ids[:at], question.ids[position + 1 :]
    if len(whole.ids) == at or around != around_answer:  # joined to an unknown word
        return "answers that are not a single token"
    if whole.ids[at] == reader.tokenizer.unk_token_id:
        return "answers that the tokenizer does not know"
    return position, whole.ids[at]


def _n_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def _aligned(reader: Reader, question: Tokens, other: Tokens) -> bool:
    if len(question.ids) != len(other.ids) or not reader.masked:
        return len(question.ids) == len(other.ids)
    return reader.mask_position(question) == reader.mask_position(other)


def _row(
    record: PromptRecord,
    coded: _Coded,
    rivals: Int[np.ndarray, "rival"],
    cluster: int,
    masked: bool,
) -> Row:
    """The prompt; for a decoder its other tokens are targets too.

    They are retained, except the answer and its named rivals.
    """
    ids = np.array(coded.question.ids)
    targets: np.ndarray = np.full(len(ids), NO_TARGET)
    if not masked:
        targets[:-1] = targets_of(coded.question)
    answers = [coded.answer, *(rivals if record.named else ())]
    retain = (targets != NO_TARGET) & ~np.isin(targets, answers)
    targets[coded.position] = coded.answer
    concept = np.arange(len(ids)) == coded.position
    return Row(
        inputs=ids,
        targets=targets,
        real=~np.array(coded.question.special) | concept,
        concept=concept,
        retain=retain,
        cluster=cluster,
        unseen=record.unseen,
        numbers={
            "kind": PROMPT,
            "position": coded.position,
            "answer_id": coded.answer,
            "named": int(record.named),
        },
        corrupted=None if coded.corrupted is None else np.array(coded.corrupted),
    )


def _rival_ids(
    records: Sequence[PromptRecord], reader: Reader
) -> dict[str, Int[np.ndarray, "rival"]]:
    """The tokens of the rivals by the text of the prompt, each once.

    A rival counts when it is a single known token where the answer stands.
    """
    contexts = {record.text: _context(record, reader) for record in records}
    words = dict.fromkeys(
        (contexts[record.text], rival) for record in records for rival in record.rivals
    )
    alone = list(dict.fromkeys(context for context, _ in words))
    coded = reader.tokens([context.rstrip() for context in alone], n_more=1)
    lengths = {
        context: len(without_end(tokens).ids)
        for context, tokens in zip(alone, coded, strict=True)
    }
    texts = [f"{context}{word}" for context, word in words]
    ids: dict[tuple[str, str], int] = {}
    for word, tokens in zip(words, reader.tokens(texts, n_more=1), strict=True):
        found = without_end(tokens).ids
        if len(found) == lengths[word[0]] + 1:
            ids[word] = found[-1]
    unknown = reader.tokenizer.unk_token_id
    return {
        record.text: np.array(
            [
                token
                for token in dict.fromkeys(
                    ids.get((contexts[record.text], rival)) for rival in record.rivals
                )
                if token not in (None, unknown)
            ],
            int,
        )
        for record in records
    }


def _context(record: PromptRecord, reader: Reader) -> str:
    before = reader.around(record)[0]
    return _CARRIER if before.endswith(" ") else before


def text_row(
    text: str, tokens: Tokens, reader: Reader, cluster: int, spared: tuple[int, int]
) -> Row | None:
    """A text to retain; None where it holds nothing to predict.

    Args:
        tokens: Of the text, for a decoder one more than `max_length` if it is longer.
        spared: Range of characters that are not masked: an answer.
    """
    n = min(len(tokens.ids), reader.max_length)
    ids, special = np.array(tokens.ids[:n]), np.array(tokens.special[:n], bool)
    targets: np.ndarray = np.full(n, NO_TARGET)
    if reader.masked:
        chosen = _masked_positions(text, tokens, spared)
        targets[chosen] = ids[chosen]
        ids[chosen] = reader.tokenizer.mask_token_id
    else:
        following = targets_of(tokens)[:n]
        targets[: len(following)] = following
    retain = targets != NO_TARGET
    if not retain.any():
        return None
    return Row(
        inputs=ids,
        targets=targets,
        real=~special,
        concept=np.zeros(n, bool),
        retain=retain,
        cluster=cluster,
        unseen=True,
        numbers={"kind": TEXT, "position": 0, "answer_id": 0, "named": 1},
    )


def _masked_positions(text: str, tokens: Tokens, spared: tuple[int, int]) -> list[int]:
    """Positions to mask, drawn with a seed made from the text."""
    possible = [
        position
        for position, (start, end) in enumerate(tokens.spans)
        if not tokens.special[position] and not (start < spared[1] and spared[0] < end)
    ]
    n = min(len(possible), max(1, round(MASKED_SHARE * len(possible))))
    return sorted(random.Random(text).sample(possible, n))
