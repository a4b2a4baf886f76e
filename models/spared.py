"""Positions of a text that a mask leaves alone: special tokens and the first position.

In causal models the first position is an attention sink, whatever its token: a few
neurons and heads are hundreds of times larger there than elsewhere, and all later
positions lean on them. M. Sun et al. (2024), "Massive Activations in Large Language
Models", https://arxiv.org/abs/2402.17762.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

FIRST_POSITION = -1
"""Stands in a list of token ids for the first position of a text, whatever its token.
"""


def spared_positions(
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch all"] | Bool[Tensor, "batch all"] | None,
    special_ids: Sequence[int],
    n_cached: int = 0,
) -> Bool[Tensor, "batch seq"]:
    """True where the token is special, or the position is the first of its text.

    Args:
        attention_mask: False or 0 at padding, also of the cached tokens; None: no
            padding.
        special_ids: Token ids, and `FIRST_POSITION`.
        n_cached: Tokens before `input_ids` that are in a key-value cache.
    """
    ids = [token for token in special_ids if token != FIRST_POSITION]
    spared = torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
    if FIRST_POSITION in special_ids:
        first = first_positions(input_ids, attention_mask) - n_cached
        seq = torch.arange(input_ids.shape[1], device=input_ids.device)
        spared |= seq == first[:, None]
    return spared


def by_token(
    x: Shaped[Tensor, "*position width"], shape: torch.Size | None
) -> Shaped[Tensor, "*token width"]:
    """x as (batch, seq, width) where a module sees batch and seq as one axis (OPT).

    Args:
        shape: (batch, seq) of the texts; None or (batch,): they are no texts.
    """
    if x.dim() != 2 or shape is None or len(shape) != 2 or len(x) != shape.numel():
        return x
    return x.unflatten(0, shape)


def first_positions(
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Tensor | None,
) -> Int[Tensor, "batch"]:
    """Place of the first token of every text that is not padding."""
    if attention_mask is None or attention_mask.dim() != 2:
        return input_ids.new_zeros(len(input_ids))
    return (attention_mask != 0).int().argmax(1)
