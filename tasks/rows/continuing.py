"""Texts that a causal model continues token by token."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BATCH_SIZE = 125


class Steps:
    """Forward passes over a growing text, with the model's cache where it has one."""

    def __init__(self, model: nn.Module):
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        wanted = {"use_cache": True, "logits_to_keep": 1}
        self.arguments = {k: v for k, v in wanted.items() if k in accepted}
        self.cache: Any = None

    def next_logits(
        self, ids: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch vocab"]:
        """A copy of the logits after the last token of `ids`.

        From the second call on, `ids` is that of the call before and one more token.
        """
        cached = {} if self.cache is None else {"past_key_values": self.cache}
        output = self.model(
            input_ids=ids[:, -1:] if cached else ids,
            attention_mask=torch.ones_like(ids),
            **cached,
            **self.arguments,
        )
        self.cache = getattr(output, "past_key_values", None)
        return output.logits[:, -1].clone()


@torch.no_grad()
def continued(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    n_tokens: int,
    end_id: int | None,
) -> list[list[int]]:
    """The most probable tokens behind every prompt, one after the other.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Tokens; a batch has prompts of equal length, so none is padded.
        n_tokens: New tokens of each.
        end_id: Token that ends a text, which and what follows it is left out.
    """
    device = next(model.parameters()).device
    found: dict[int, list[int]] = {}
    for indices in equal_lengths(prompts):
        ids = torch.tensor([list(prompts[i]) for i in indices], device=device)
        n_prompt = ids.shape[1]
        steps = Steps(model)
        for _ in range(n_tokens):
            best = steps.next_logits(ids).argmax(-1)
            ids = torch.cat([ids, best[:, None]], dim=1)
        for i, new in zip(indices, ids[:, n_prompt:].tolist(), strict=True):
            found[i] = new[: new.index(end_id)] if end_id in new else new
    return [found[i] for i in range(len(prompts))]


def equal_lengths(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the texts in batches of texts of equal length."""
    by_length: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(i)
    return [
        indices[first : first + BATCH_SIZE]
        for indices in by_length.values()
        for first in range(0, len(indices), BATCH_SIZE)
    ]
