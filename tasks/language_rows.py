"""Tokenised texts as rows of a language-model batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, Batch, Metric, TaskOptions
from circuitcut.tasks.selected_logits import spread

_LOGITS_OF_LOSS = 2**22
"""Whose logarithms fit in the cache: 16 MiB in float32."""


def of_vocabulary(metric: Metric, tokenizer: Any) -> Metric:
    """A loss in nats per token with that of a uniform guess over the vocabulary."""
    return replace(metric, chance=math.log(len(tokenizer)))


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text, including special tokens."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """First character of each token and one past its last."""
    special: list[bool]


@dataclass(frozen=True)
class Row:
    """One example: inputs, next tokens, and the positions of concept and retain.

    All arrays have the length of the input; `concept` and `retain` are True at the
    positions whose target belongs to the concept or is retained.
    """

    inputs: Int[np.ndarray, "seq"]
    targets: Int[np.ndarray, "seq"]
    real: Bool[np.ndarray, "seq"]
    concept: Bool[np.ndarray, "seq"]
    retain: Bool[np.ndarray, "seq"]
    cluster: int
    unseen: bool
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Further integers of the example; each becomes a `(batch,)` entry of the batch."""
    corrupted: Int[np.ndarray, "seq"] | None = None
    """Paired counterfactual inputs."""


def prefix_ids(tokenizer: Any, options: TaskOptions) -> tuple[int, ...]:
    """Tokens before every input; () is plain text.

    Raises:
        UserError: When the tokenizer has no begin-of-text token or no chat template
            and one is asked for.
    """
    if options.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "--chat needs a tokenizer with a chat template, which this model has "
                "not; leave it out, or use an instruction-tuned model"
            )
        turn = [{"role": "user", "content": options.prefix or ""}]
        text = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    if not (options.bos or options.prefix):
        return ()
    begin = tokenizer.bos_token_id
    if options.bos and begin is None:
        raise UserError(
            "--bos needs a tokenizer with a begin-of-text token, which this model has "
            "not; leave it out"
        )
    usual = tokenizer.encode("", add_special_tokens=True)
    has_begin = options.bos or (begin is not None and usual[:1] == [begin])
    text_ids = tokenizer.encode(options.prefix or "", add_special_tokens=False)
    return ((begin,) if has_begin else ()) + tuple(text_ids)


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_tokens: int,
    prefix: Sequence[int] = (),
) -> list[Tokens]:
    """Tokens of every text, at most `max_tokens` per text.

    Args:
        prefix: Tokens before every text, marked as special; they replace those that
            the tokenizer adds.

    Raises:
        UserError: When the tokenizer does not give the characters of each token, or
            the prefix leaves no room for a text.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} must be a fast tokenizer; "
            "save one with tokenizer.json beside the model"
        )
    n = len(prefix)
    if n and n + 4 > max_tokens:
        raise UserError(
            f"--prefix has {n} tokens, which leaves no room in --max_length "
            f"{max_tokens}; give a larger --max_length"
        )
    if not texts:
        return []
    coded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_tokens - n,
        add_special_tokens=not prefix,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    marks = (coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"])
    return [
        Tokens(
            [*prefix, *ids],
            [*[(0, 0)] * n, *spans],
            [*[True] * n, *(bool(mark) for mark in special)],
        )
        for ids, spans, special in zip(*marks, strict=True)
    ]


def targets_of(tokens: Tokens) -> list[int]:
    """The token after each but the last; a special token is no target."""
    return [
        NO_TARGET if special else token
        for token, special in zip(tokens.ids[1:], tokens.special[1:], strict=True)
    ]


def without_end(tokens: Tokens) -> Tokens:
    """The tokens without special tokens at the end, which some tokenizers add."""
    n = len(tokens.ids)
    while n > 1 and tokens.special[n - 1]:
        n -= 1
    return Tokens(tokens.ids[:n], tokens.spans[:n], tokens.special[:n])


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """A batch of rows, padded on the right to the longest row."""
    length = max(len(row.inputs) for row in rows)

    def padded(arrays: list[np.ndarray], filler: int, dtype: type) -> Tensor:
        filled: np.ndarray = np.full((len(rows), length), filler, dtype)
        for line, values in zip(filled, arrays, strict=True):
            line[: len(values)] = values
        return torch.from_numpy(filled)

    concept = padded([row.concept for row in rows], 0, np.bool_)
    retain = padded([row.retain for row in rows], 0, np.bool_)
    attended = [np.ones(len(row.inputs)) for row in rows]
    batch = {
        "input_ids": padded([row.inputs for row in rows], pad_id, np.int64),
        "attention_mask": padded(attended, 0, np.int64),
        "targets": padded([row.targets for row in rows], NO_TARGET, np.int64),
        "concept": concept,
        "retain": retain,
        "weights": (concept | retain).float(),
        "real": padded([row.real for row in rows], 0, np.bool_),
        "cluster": torch.tensor([row.cluster for row in rows]),
        "unseen": torch.tensor([row.unseen for row in rows]),
    }
    for name in rows[0].numbers:
        batch[name] = torch.tensor([row.numbers[name] for row in rows])
    if any(row.corrupted is not None for row in rows):
        paired = [
            row.inputs if row.corrupted is None else row.corrupted for row in rows
        ]
        batch["corrupted_ids"] = padded(paired, pad_id, np.int64)
    return batch


def pad_id_of(tokenizer: Any) -> int:
    """The padding token; 0 if the tokenizer has none, since padding is masked."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood in nats of every target; 0 at positions without one."""
    at_once = max(1, _LOGITS_OF_LOSS // logits.shape[-1])
    pieces = zip(
        logits.flatten(0, -2).split(at_once),
        targets.flatten().split(at_once),
        strict=True,
    )
    losses = [
        torch.nn.functional.cross_entropy(
            piece.float(), wanted, ignore_index=NO_TARGET, reduction="none"
        )
        for piece, wanted in pieces
    ]
    return torch.cat(losses).view(targets.shape)


def counted_nll(logits: Tensor, batch: Batch, where: Tensor) -> Tensor:
    """Negative log likelihood in nats of the targets at `where`, (batch, seq).

    Zero elsewhere and where there is no target.

    Args:
        logits: Those of the positions at `where`, (position, vocab).
    """
    return spread(token_nll(logits, batch["targets"][where]), where)


def share(total: Tensor, count: Tensor) -> float:
    """Sum of `total` divided by sum of `count`, over examples; NaN if that is 0."""
    n = count.sum().item()
    return total.sum().item() / n if n else float("nan")
