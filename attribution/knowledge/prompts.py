"""Prompts as tokens: where a model predicts the answer, and what the answer is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import AskedPrompt


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


def prompts_of(asked: Sequence[AskedPrompt]) -> list[Prompt]:
    """Prompts of facts, for attribution.

    A masked model is asked for all tokens of the object, a causal one for the first.
    """
    return [
        Prompt(
            prompt.input_ids,
            prompt.positions if prompt.masked else (prompt.position,),
            prompt.answer_ids if prompt.masked else prompt.answer_ids[:1],
            repr(prompt.text[:60]),
        )
        for prompt in asked
    ]


def asked_for(prompt: Prompt, words: Sequence[int]) -> Prompt:
    """The same prompt with another answer, such as what the model predicts."""
    return replace(prompt, answer=tuple(words))
