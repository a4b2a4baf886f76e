"""Prompts as tokens: where a model predicts the answer, and what the answer is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.prompts.records import MASK, MASK_SPELLINGS, PromptRecord
from circuitcut.storage.errors import UserError
from circuitcut.tasks.prompt_rows import Reader


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt and of its answer.

    Raises:
        UserError: When there are no positions, one lies outside of the prompt, or the
            answer has another number of tokens.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Where the answer is predicted: at its mask tokens, or at the last token."""
    answer: tuple[int, ...]
    """The token that is predicted at every position."""
    where: str = "a prompt"
    """For messages: file and line, or the text."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not self.positions or not all(0 <= p < n for p in self.positions):
            raise UserError(
                f"{self.where}: argument positions must name tokens 0 to {n - 1} of "
                f"the prompt, got {list(self.positions)}; a prompt of a masked model "
                "needs a mask"
            )
        if len(self.positions) != len(self.answer):
            raise UserError(
                f"{self.where}: a prompt must have a mask for every token of the "
                f"answer, got {len(self.positions)} masks for {len(self.answer)} "
                "tokens; write one mask, which is repeated, or as many"
            )


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of different length, padded on the right.

    Repeated positions fill up the rows of prompts with fewer masks.
    """

    ids: Int[Tensor, "prompt seq"]
    real: Bool[Tensor, "prompt seq"]
    positions: Int[Tensor, "prompt mask"]
    answers: Int[Tensor, "prompt mask"]
    counted: Bool[Tensor, "prompt mask"]
    """False at repeated positions."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> "PromptBatch":
        """The tokens of `prompts`, of which there must be at least one."""
        length = max(len(prompt.ids) for prompt in prompts)
        n_masks = max(len(prompt.positions) for prompt in prompts)

        def padded(values: Sequence[int], n: int, filling: int) -> list[int]:
            return [*values, *[filling] * (n - len(values))]

        ids = [padded(p.ids, length, p.ids[-1]) for p in prompts]
        real = [padded([1] * len(p.ids), length, 0) for p in prompts]
        positions = [padded(p.positions, n_masks, p.positions[0]) for p in prompts]
        answers = [padded(p.answer, n_masks, p.answer[0]) for p in prompts]
        counted = [padded([1] * len(p.answer), n_masks, 0) for p in prompts]
        as_tensor = (
            torch.tensor(rows, device=device)
            for rows in (ids, real, positions, answers, counted)
        )
        ids_, real_, positions_, answers_, counted_ = as_tensor
        return cls(ids_, real_.bool(), positions_, answers_, counted_.bool())

    @property
    def is_padded(self) -> bool:
        """Whether some prompts are shorter than others."""
        return not bool(self.real.all())


def coded_prompts(reader: Reader, records: Sequence[PromptRecord]) -> list[Prompt]:
    """Prompts of a model from their texts and answers.

    For a masked model the one mask of a prompt becomes as many as its answer has
    tokens; a text without a mask gets it at its end. A causal model is asked for the
    first token of the answer after the text before its mask.

    Args:
        reader: The tokenizer, and what kind of model it is of.
        records: See `PromptRecord`; `where` names each in messages.

    Raises:
        UserError: When an answer is unknown to the vocabulary, or a prompt is cut off
            before its answer by the reader's `max_length`.
    """
    code = _masked if reader.masked else _causal
    return [code(reader, record) for record in records]


def _masked(reader: Reader, record: PromptRecord) -> Prompt:
    tokenizer = reader.tokenizer
    before, after = reader.around(record)
    answer = _tokens_of_answer(reader, record)
    masks = tokenizer.mask_token * len(answer)
    tokens = reader.tokens([f"{before}{masks}{after}"])[0].ids
    mask_id = tokenizer.mask_token_id
    positions = tuple(i for i, token in enumerate(tokens) if token == mask_id)
    if len(positions) < len(answer):
        raise UserError(
            f"{_place(record)}: the prompt must have its {MASK} within --max_length "
            f"{reader.max_length}, got {len(positions)} of {len(answer)} masks there; "
            "give a larger one"
        )
    return Prompt(tuple(tokens), positions, answer, _place(record))


def _causal(reader: Reader, record: PromptRecord) -> Prompt:
    before, after = reader.around(record)
    if after.strip(" .!?。") and MASK in record.text:
        raise UserError(
            f"{_place(record)}: the answer of a causal model must stand at the end of "
            f"its prompt, got {after.strip()[:40]!r} behind it; use a masked model, or "
            "leave this prompt out"
        )
    question = reader.tokens([before.rstrip()])[0].ids
    whole = reader.tokens([f"{before}{record.answer}"], n_more=1)[0].ids
    if whole[: len(question)] != question or len(whole) == len(question):
        raise UserError(
            f"{_place(record)}: the tokens of the prompt must be those before its "
            f"answer {record.answer!r} as well, within --max_length "
            f"{reader.max_length}; write the prompt without a space at its end"
        )
    first = whole[len(question)]
    _check_known(reader, record, [first])
    return Prompt(tuple(question), (len(question) - 1,), (first,), _place(record))


def _tokens_of_answer(reader: Reader, record: PromptRecord) -> tuple[int, ...]:
    """Tokens of an answer in its sentence, where blanks before it may count."""
    tokenizer = reader.tokenizer
    before, _ = reader.around(record)
    filler = "" if not before.endswith(" ") else " "
    ids = tokenizer.encode(f"{filler}{record.answer}", add_special_tokens=False)
    _check_known(reader, record, ids)
    return tuple(ids)


def _check_known(reader: Reader, record: PromptRecord, ids: Sequence[int]) -> None:
    unknown = reader.tokenizer.unk_token_id
    is_end = unknown == reader.tokenizer.eos_token_id
    if not ids or (unknown in ids and not is_end):
        raise UserError(
            f"{_place(record)}: the answer {record.answer!r} must be in the vocabulary "
            "of the model, got an unknown token; leave this prompt out, or use another "
            "model"
        )


def _place(record: PromptRecord) -> str:
    return record.where or repr(record.text[:60])


def asked_for(prompt: Prompt, words: Sequence[int]) -> Prompt:
    """The same prompt with another answer, such as what the model predicts."""
    return replace(prompt, answer=tuple(words))


def has_slot(text: str) -> bool:
    """Whether a text names the place of its answer."""
    return any(spelling in text for spelling in MASK_SPELLINGS)
