"""Logits at chosen positions: the head of a language model runs at these alone."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def logits_at(
    model: nn.Module, inputs: Mapping[str, Tensor], where: Bool[Tensor, "batch *seq"]
) -> Float[Tensor, "position classes"]:
    """Logits of the positions at which `where` is True, row by row.

    The model itself computes them, with whatever it does to its logits; only the input
    of its head is narrowed. A model without a head known to transformers computes all
    logits.
    """
    narrowed = getattr(model, "narrowed", None)  # of a model that keeps its output
    if narrowed is not None:
        return narrowed(inputs, where)
    head = _head_of(model)
    if head is None:
        return model(**inputs).logits[where]
    handle = head.register_forward_pre_hook(_Narrow(where))
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    return logits[0]


class _Narrow:
    """Passes only the chosen positions on to the head, as one row."""

    def __init__(self, where: Tensor):
        self.where = where

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][self.where].unsqueeze(0), *args[1:])


def _head_of(model: nn.Module) -> nn.Module | None:
    """The linear head of a language model; None if there is none."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return head if isinstance(head, nn.Linear) else None


def spread(
    values: Float[Tensor, "position"], where: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Values of the chosen positions at their places; zero elsewhere."""
    return torch.zeros(
        where.shape, dtype=values.dtype, device=values.device
    ).masked_scatter(where, values)
