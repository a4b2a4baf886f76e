"""What a model says of facts beyond the next token: free text, and multiple choice.

Generation: the object is among the first tokens of greedy decoding. Multiple choice:
the whole object has a higher log-probability than each whole choice, whatever their
numbers of tokens.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.data.facts.records import Fact
from circuitcut.tasks.facts.asked import AskedPrompt, answer_positions, padded_prompts
from circuitcut.tasks.rows.continuing import continued
from circuitcut.tasks.selected_logits import logits_at

N_TOKENS = 10
"""Tokens within which the object must be produced."""
N_CHOICES = 3
"""Wrong objects of a multiple choice, if the data name none."""
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Question:
    """A prompt with its object, and the same prompt with each wrong object."""

    right: AskedPrompt
    wrong: tuple[AskedPrompt, ...]

    @property
    def chance(self) -> float:
        """Share of guesses that are right."""
        return 1 / (1 + len(self.wrong))


def wrong_objects(fact: Fact, facts: Sequence[Fact], seed: str) -> list[str]:
    """The choices that the data name, else drawn objects of the relation.

    Args:
        facts: All facts at hand.
        seed: Draws `N_CHOICES` of the other objects.
    """
    true = {f.object for f in facts if (f.subject, f.relation) == fact.key[:2]}
    if fact.choices:
        return [name for name in dict.fromkeys(fact.choices) if name not in true]
    alike = fact.relation, fact.language
    drawn = sorted(
        {f.object for f in facts if (f.relation, f.language) == alike} - true
    )
    return random.Random(seed).sample(drawn, min(N_CHOICES, len(drawn)))


def produced(
    model: nn.Module,
    prompts: Sequence[AskedPrompt],
    objects: Sequence[str],
    tokenizer: Any,
    n_tokens: int = N_TOKENS,
) -> list[bool]:
    """Whether greedy decoding has the object within so many tokens, as whole words.

    Args:
        model: A causal model, in evaluation mode.
        objects: The object of every prompt; upper and lower case are the same.
    """
    found = continued(
        model,
        [prompt.input_ids for prompt in prompts],
        n_tokens=n_tokens,
        end_id=tokenizer.eos_token_id,
    )
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return [
        re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
        for text, name in zip(texts, objects, strict=True)
    ]


@torch.no_grad()
def chosen(model: nn.Module, questions: Sequence[Question], pad_id: int) -> list[bool]:
    """Whether the right object has the highest log-probability of the choices."""
    prompts = [p for question in questions for p in (question.right, *question.wrong)]
    values = iter(log_probabilities(model, prompts, pad_id).tolist())
    return [
        next(values) > max([next(values) for _ in question.wrong])
        for question in questions
    ]


def log_probabilities(
    model: nn.Module, prompts: Sequence[AskedPrompt], pad_id: int
) -> Float[Tensor, "prompt"]:
    """Log-probability of every whole object in nats, the sum over its tokens."""
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].whole_ids))
    found = torch.zeros(len(prompts), dtype=torch.float64)
    while order:
        longest = len(prompts[order[-1]].whole_ids)
        n = max(1, _TOKENS_AT_ONCE // longest)
        group, order = order[-n:], order[:-n]
        batch = padded_prompts([prompts[i] for i in group], pad_id, whole=True)
        batch = {name: values.to(device) for name, values in batch.items()}
        where = answer_positions(batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        log_p = logits_at(model, inputs, where).double().log_softmax(-1)
        answers = batch["answer_ids"]
        of_tokens = log_p.gather(1, answers[answers >= 0][:, None]).squeeze(1)
        rows = where.nonzero()[:, 0]
        sums = torch.zeros(len(group), dtype=torch.float64, device=device)
        found[group] = sums.index_add(0, rows, of_tokens).cpu()
    return found
