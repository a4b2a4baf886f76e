"""Continuations of prompts, sampled with a fixed sequence of random numbers per prompt.

The random numbers of a prompt do not depend on its batch: the cut and the uncut model,
and batches of any size, are compared on the same random numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.storage.modes import evaluating
from circuitcut.tasks.rows.continuing import Steps, equal_lengths
from circuitcut.tasks.selected_logits import logits_at

PROMPT_TOKENS = 8
NEW_TOKENS = 20
TOP_P = 0.9


@dataclass(frozen=True)
class Continuation:
    """Tokens of a prompt and the new tokens that the model sampled after it."""

    prompt: list[int]
    new: list[int]


@torch.no_grad()
def sample_continuations(
    model: nn.Module,
    prompts: Sequence[list[int]],
    *,
    end_id: int | None,
    banned_ids: Sequence[int],
    seed: int,
) -> list[Continuation]:
    """Sample 20 tokens after every prompt: nucleus sampling, p = 0.9, temperature 1.

    A continuation ends before `end_id`, which is never its first token. Each step runs
    the model on the new token alone if the model returns a key-value cache, and
    otherwise (a mask on edges allows no cache) on the whole text.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Tokens; a batch has prompts of equal length, so none is padded.
        end_id: Token that ends a text, if the tokenizer has one.
        banned_ids: Tokens that are never sampled.
        seed: Seed of the random numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(prompts), NEW_TOKENS, generator=rng)
    device = next(model.parameters()).device
    continuations: dict[int, Continuation] = {}
    for indices in equal_lengths(prompts):
        ids = torch.tensor([prompts[i] for i in indices], device=device)
        n_prompt = ids.shape[1]
        step_of = Steps(model)
        for step in range(NEW_TOKENS):
            last = step_of.next_logits(ids).float().cpu()
            last[:, list(banned_ids)] = -torch.inf
            if end_id is not None and step == 0:
                last[:, end_id] = -torch.inf
            next_ids = nucleus_choice(last, noise[indices, step])
            ids = torch.cat([ids, next_ids[:, None].to(device)], dim=1)
        for i, row in zip(indices, ids.tolist(), strict=True):
            new = row[n_prompt:]
            n_new = new.index(end_id) if end_id in new else len(new)
            continuations[i] = Continuation(row[:n_prompt], new[:n_new])
    return [continuations[i] for i in range(len(prompts))]


def nucleus_choice(
    logits: Float[Tensor, "batch vocab"], noise: Float[Tensor, "batch"]
) -> Int[Tensor, "batch"]:
    """Tokens drawn with `noise` in [0, 1) from the smallest set of probability >= 0.9.

    Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration",
    https://arxiv.org/abs/1904.09751.
    """
    probs, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= TOP_P, 0.0)
    cumulative = probs.cumsum(-1)
    place = (cumulative <= noise[:, None] * cumulative[:, -1:]).sum(-1)
    n_kept = (probs > 0).sum(-1)
    return order.gather(1, torch.minimum(place, n_kept - 1)[:, None]).squeeze(1)


@torch.no_grad()
def mean_continuation_nll(
    model: nn.Module, continuations: Sequence[Continuation]
) -> float:
    """Mean NLL of the new tokens in nats per token; NaN if there are none."""
    device = next(model.parameters()).device
    texts = [row.prompt + row.new for row in continuations]
    nats, n_tokens = 0.0, 0
    for indices in equal_lengths(texts):
        ids = torch.tensor([texts[i] for i in indices], device=device)
        n_new = torch.tensor([[len(continuations[i].new)] for i in indices])
        place = torch.arange(ids.shape[1])
        # the logits at a position predict the token after it
        predicts = (place >= ids.shape[1] - 1 - n_new) & (place < ids.shape[1] - 1)
        where = predicts.to(device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = logits_at(model, inputs, where)
        targets = ids.roll(-1, 1)[where]
        nll = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        nats += nll.item()
        n_tokens += len(targets)
    return nats / n_tokens if n_tokens else float("nan")


def sampled(
    model: nn.Module,
    cut: Callable[[], AbstractContextManager[Any]],
    prompts: Sequence[list[int]],
    *,
    end_id: int | None,
    banned_ids: Sequence[int],
    seed: int,
) -> tuple[list[Continuation], float]:
    """Continuations by the cut model, and their perplexity under the uncut model."""
    with evaluating(model):
        with cut():
            continuations = sample_continuations(
                model, prompts, end_id=end_id, banned_ids=banned_ids, seed=seed
            )
        nll = mean_continuation_nll(model, continuations)
    return continuations, float(torch.tensor(nll).exp())
