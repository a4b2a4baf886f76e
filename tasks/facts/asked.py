"""Facts as a model is asked them: token ids, where the object is predicted, its tokens.

A causal model predicts the object behind the prompt, a masked one at as many mask
tokens as the object has tokens. Everything here is plain data: what looks for the units
of a fact needs no task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.facts.records import Fact
from circuitcut.storage.errors import UserError
from circuitcut.tasks.language_rows import Tokens
from circuitcut.tasks.rows.prompts import Reader

BEHIND = "prompts that go on behind the object, which a decoder does not read"
LONG = "prompts longer than --max_length"
UNKNOWN = "objects that the tokenizer does not know"
JOINED = "objects that share a token with the prompt"


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt of one fact, in tokens."""

    fact: int
    """Number of the fact in the list that was given."""
    relation: str
    text: str
    """The prompt as the model reads it."""
    input_ids: tuple[int, ...]
    """The prompt; a masked model's has a mask token for every token of the object."""
    answer_ids: tuple[int, ...]
    """The tokens of the object, at least one."""
    position: int
    """Where the first of them is predicted: the first mask token, or a causal model's
    last token."""
    special: tuple[bool, ...]
    """Which of `input_ids` are special tokens, or of the prefix."""
    masked: bool

    @property
    def whole_ids(self) -> tuple[int, ...]:
        """The input that predicts every token of the object in one forward pass.

        A causal model reads the object's own tokens but the last behind the prompt.
        """
        return self.input_ids if self.masked else self.input_ids + self.answer_ids[:-1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Where each token of the object is predicted, in `whole_ids`."""
        return tuple(range(self.position, self.position + len(self.answer_ids)))


@dataclass(frozen=True)
class AskedFacts:
    """The prompts of some facts that a model can be asked, in the order of the facts.

    Every prompt of a fact that can be asked is there, and a fact may have none.
    """

    prompts: tuple[AskedPrompt, ...]
    left_out: dict[str, list[Fact]]
    """Facts of the prompts that cannot be asked, by reason, a fact for every prompt."""

    def of_fact(self, n_facts: int) -> list[list[AskedPrompt]]:
        """The prompts of each fact, by its number."""
        by_fact: list[list[AskedPrompt]] = [[] for _ in range(n_facts)]
        for prompt in self.prompts:
            by_fact[prompt.fact].append(prompt)
        return by_fact


def asked_facts(
    facts: Sequence[Fact],
    tokenizer: Any,
    *,
    masked: bool,
    max_length: int = 128,
    prefix: tuple[int, ...] = (),
    neighbourhood: bool = False,
) -> AskedFacts:
    """Every prompt of every fact in tokens; objects may have several tokens.

    Args:
        facts: Any list; `AskedPrompt.fact` counts in it.
        tokenizer: A fast tokenizer of transformers.
        masked: The model predicts masked tokens, else the next one.
        max_length: Most tokens of an input, the object's among them.
        prefix: Tokens before every input; see `prefix_ids`.
        neighbourhood: Ask the prompts about other subjects instead of the fact's own.

    Raises:
        UserError: When the tokenizer is not a fast one, or has no mask token though the
            model is masked.
    """
    if masked and tokenizer.mask_token is None:
        raise UserError(
            "the tokenizer of a masked language model must have a mask token, got "
            "none; add mask_token to its tokenizer_config.json"
        )
    reader = Reader(tokenizer, masked, max_length, prefix)
    pairs = [
        (number, fact.record(prompt))
        for number, fact in enumerate(facts)
        for prompt in (fact.neighbourhood if neighbourhood else fact.prompts)
    ]
    texts = [reader.question(record) for _, record in pairs]
    questions = reader.tokens(texts, n_more=1)
    answered = reader.tokens([reader.answered(record) for _, record in pairs], n_more=1)
    prompts: list[AskedPrompt] = []
    left_out: dict[str, list[Fact]] = {}
    for (number, record), text, question, whole in zip(
        pairs, texts, questions, answered, strict=True
    ):
        goes_on = any(c.isalnum() for c in reader.around(record)[1])
        found = BEHIND if goes_on and not masked else _placed(reader, question, whole)
        if isinstance(found, str):
            left_out.setdefault(found, []).append(facts[number])
            continue
        position, answer = found
        n_more = len(answer) - 1 if masked else 0
        prompts.append(
            AskedPrompt(
                fact=number,
                relation=facts[number].relation,
                text=text,
                input_ids=_widened(question.ids, position, n_more),
                answer_ids=answer,
                position=position,
                special=_widened(question.special, position, n_more),
                masked=masked,
            )
        )
    return AskedFacts(tuple(prompts), left_out)


def _placed(
    reader: Reader, question: Tokens, whole: Tokens
) -> tuple[int, tuple[int, ...]] | str:
    """Position and tokens of the object, or the reason why it cannot be asked."""
    if max(len(question.ids), len(whole.ids)) > reader.max_length:
        return LONG
    at = len(question.ids)
    position = at - 1
    if reader.masked:
        position = at = reader.mask_position(question)
    n_behind = len(question.ids) - position - 1
    end = len(whole.ids) - n_behind
    around = question.ids[:at], question.ids[position + 1 :]
    if end <= at or (whole.ids[:at], whole.ids[end:]) != around:
        return JOINED
    answer = tuple(whole.ids[at:end])
    return UNKNOWN if reader.tokenizer.unk_token_id in answer else (position, answer)


def _widened(values: Sequence[Any], position: int, n_more: int) -> tuple[Any, ...]:
    """The value at `position` so many more times, for further mask tokens."""
    repeated = [values[position]] * n_more
    return (*values[: position + 1], *repeated, *values[position + 1 :])


def padded_prompts(
    prompts: Sequence[AskedPrompt], pad_id: int, *, whole: bool = False
) -> dict[str, Int[Tensor, "prompt *seq"]]:
    """A batch of prompts, padded on the right to the longest.

    Returns:
        `input_ids` and `attention_mask` (prompt, seq); `position`, `answer_id` (of the
        object's first token), `n_answer` (its tokens) and `fact` (prompt,);
        `answer_ids` (prompt, most tokens), padded with -1.

    Args:
        pad_id: The padding token.
        whole: A causal model reads the object's own tokens but the last: see
            `AskedPrompt.whole_ids`.
    """
    inputs = [prompt.whole_ids if whole else prompt.input_ids for prompt in prompts]
    return {
        "input_ids": _padded(inputs, pad_id),
        "attention_mask": _padded([[1] * len(ids) for ids in inputs], 0),
        "position": torch.tensor([prompt.position for prompt in prompts]),
        "answer_id": torch.tensor([prompt.answer_ids[0] for prompt in prompts]),
        "n_answer": torch.tensor([len(prompt.answer_ids) for prompt in prompts]),
        "answer_ids": _padded([prompt.answer_ids for prompt in prompts], -1),
        "fact": torch.tensor([prompt.fact for prompt in prompts]),
    }


def answer_positions(batch: Mapping[str, Tensor]) -> Bool[Tensor, "prompt seq"]:
    """Where a token of an object is predicted, in a batch with these entries.

    Args:
        batch: With `position`, `n_answer` and `input_ids` of `padded_prompts`.
    """
    ids = batch["input_ids"]
    places = torch.arange(ids.shape[1], device=ids.device)
    first, n = batch["position"][:, None], batch["n_answer"][:, None]
    return (first <= places) & (places < first + n)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Int[Tensor, "row most"]:
    length = max(map(len, rows), default=0)
    filled = [[*row, *[filler] * (length - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long).reshape(len(rows), length)
