"""What a language model writes after a text: greedy continuations by `generate`."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from circuitcut.storage.modes import evaluating


@torch.no_grad()
def greedy(model: Any, ids: Sequence[int], n_new: int) -> list[int]:
    """The `n_new` tokens that are each the most likely one, fewer at the end of a text.

    Fewer also where the model has no further positions. A mask that is applied to the
    model holds: conditional ablations look at every new token.
    """
    room = getattr(model.config, "max_position_embeddings", None) or 10**9
    n_new = min(n_new, room - len(ids))
    if n_new < 1:
        return []
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    end = model.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
    )
    with evaluating(model):
        made = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )
    return made[0, len(ids) :].tolist()
