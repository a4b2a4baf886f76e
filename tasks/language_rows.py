"""Tokenised texts as rows of a language-model batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from storage.errors import UserError
from tasks.base import NO_TARGET, Batch


@dataclass(frozen=True)
class Tokens:
    """One text as the tokenizer sees it, special tokens included."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """Characters of each token."""
    special: list[bool]


@dataclass(frozen=True)
class Row:
    """One example: the inputs, the next tokens, and which of them count for what.

    All lists have the length of the input; `concept` and `retain` mark positions whose
    target counts.
    """

    inputs: list[int]
    targets: list[int]
    real: list[bool]
    concept: list[bool]
    retain: list[bool]
    cluster: int
    unseen: bool
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Further integers of the example, each a `(batch,)` entry of the batch."""
    corrupted: list[int] | None = None
    """Paired counterfactual inputs of the same length."""


def tokenize(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[Tokens]:
    """Every text as tokens, cut after `max_tokens` of them.

    Raises:
        UserError: When the tokenizer cannot say which characters a token covers.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} must be a fast tokenizer; "
            "save one with tokenizer.json beside the model"
        )
    if not texts:
        return []
    coded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    marks = (coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"])
    return [
        Tokens(ids, spans, [bool(mark) for mark in special])
        for ids, spans, special in zip(*marks, strict=True)
    ]


def without_end(tokens: Tokens) -> Tokens:
    """The text without special tokens behind it, which some tokenizers add."""
    n = len(tokens.ids)
    while n > 1 and tokens.special[n - 1]:
        n -= 1
    return Tokens(tokens.ids[:n], tokens.spans[:n], tokens.special[:n])


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows padded on the right to the longest of them."""

    def padded(values: list[list[Any]], filler: Any) -> Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in values])

    length = max(len(row.inputs) for row in rows)
    retain = padded([row.retain for row in rows], False)
    concept = padded([row.concept for row in rows], False)
    batch = {
        "input_ids": padded([row.inputs for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row.inputs) for row in rows], 0),
        "targets": padded([row.targets for row in rows], NO_TARGET),
        "concept": concept,
        "retain": retain,
        "weights": (concept | retain).float(),
        "real": padded([row.real for row in rows], False),
        "cluster": torch.tensor([row.cluster for row in rows]),
        "unseen": torch.tensor([row.unseen for row in rows]),
    }
    for name in rows[0].numbers:
        batch[name] = torch.tensor([row.numbers[name] for row in rows])
    if any(row.corrupted is not None for row in rows):
        corrupted = [row.corrupted or row.inputs for row in rows]
        batch["corrupted_ids"] = padded(corrupted, pad_id)
    return batch


def pad_id_of(tokenizer: Any) -> int:
    """The padding token, or any token where there is none; it is never attended to."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood in nats of every target, zero where there is none."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).float(),
        targets.flatten(),
        ignore_index=NO_TARGET,
        reduction="none",
    )
    return losses.view(targets.shape)


def share(total: Tensor, count: Tensor) -> float:
    """Sum over examples of `total` per sum of `count`; NaN where nothing counts."""
    n = count.sum().item()
    return total.sum().item() / n if n else float("nan")
