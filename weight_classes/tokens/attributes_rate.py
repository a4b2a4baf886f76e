"""Attributes rate: how many of the tokens that a subject's state speaks of are its own.

M. Geva, J. Bastings, K. Filippova and A. Globerson (2023), "Dissecting Recall of
Factual Associations in Auto-Regressive Language Models",
https://arxiv.org/abs/2304.14767. The output h of a block at the last token of a subject
gives token t the score h . u_t, without the final norm, u_t being its unembedding
(`vocabulary.unembedding`: folded with the gain of the final norm, so that of an RMSNorm
a positive factor alone is missing, or raw). Of the tokens with the highest scores, stop
words and those of one or two characters are left out; the rate is the percentage of the
others that are among the subject's words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.models.architectures import architecture_of
from circuitcut.models.residual.replayed import record_blocks
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

N_TOP = 50
"""Tokens with the highest scores that are looked at."""


@dataclass(frozen=True)
class NamedSubject:
    """A subject where a text names it."""

    name: str
    ids: tuple[int, ...]
    """The text's tokens up to the last one of the subject."""
    words: frozenset[str]
    """Its attributes, in lower case."""


@dataclass(frozen=True)
class Vocabulary:
    """Unembeddings, and the word that each token is; "" where it counts as none."""

    unembedding: Float[Tensor, "vocab d_model"]
    words: tuple[str, ...]

    @classmethod
    def of(
        cls,
        unembedding: Float[Tensor, "vocab d_model"],
        tokens: Sequence[str],
        counts: Callable[[str], bool],
    ) -> "Vocabulary":
        """With tokens in lower case, without blanks around them.

        Args:
            tokens: Every token as text.
            counts: Whether a word is looked at.

        Raises:
            UserError: When there are fewer tokens than unembeddings.
        """
        if len(tokens) < len(unembedding):
            raise UserError(
                f"argument tokens must name the {len(unembedding):,} tokens that have "
                f"unembeddings, got {len(tokens):,}"
            )
        plain = (token.strip().lower() for token in tokens)
        return cls(unembedding, tuple(word if counts(word) else "" for word in plain))


@torch.no_grad()
def nearest_words(
    model: Any,
    subjects: Sequence[NamedSubject],
    vocabulary: Vocabulary,
    *,
    n_top: int = N_TOP,
    batch_size: int = 16,
) -> list[list[list[str]]]:
    """Of every subject, behind every block, the words of the `n_top` highest tokens.

    "" stands for a token that is no word.

    Raises:
        UserError: When the unembeddings are not of the width of the residual stream, or
            the model is of no known family.
    """
    architecture_of(model)  # a family of the table, whose blocks are known
    device = next(model.parameters()).device
    unembedding = vocabulary.unembedding.to(device)
    rows: list[list[list[str]]] = []
    with evaluating(model):
        for first in range(0, len(subjects), batch_size):
            piece = subjects[first : first + batch_size]
            longest = max(len(subject.ids) for subject in piece)
            ids = torch.zeros(len(piece), longest, dtype=torch.long, device=device)
            real = torch.zeros_like(ids)
            for row, subject in enumerate(piece):
                ids[row, : len(subject.ids)] = torch.tensor(subject.ids)
                real[row, : len(subject.ids)] = 1
            run = partial(model, input_ids=ids, attention_mask=real, use_cache=False)
            at_last = torch.arange(len(piece)), real.sum(1) - 1
            of_layers = [
                _words(stream[at_last], vocabulary.words, unembedding, n_top)
                for output in record_blocks(model, run)
                for stream in [output[0] if isinstance(output, tuple) else output]
            ]
            rows += map(list, zip(*of_layers, strict=True))
    return rows


def _words(
    states: Float[Tensor, "subject d_model"],
    words: Sequence[str],
    unembedding: Float[Tensor, "vocab width"],
    n_top: int,
) -> list[list[str]]:
    if states.shape[1] != unembedding.shape[1]:
        raise UserError(
            "the attributes rate needs unembeddings of the residual stream's width, "
            f"got {unembedding.shape[1]} for {states.shape[1]} (project_out); it is "
            "not defined for this model"
        )
    best = (states.to(unembedding) @ unembedding.T).topk(n_top).indices.tolist()
    return [[words[token] for token in tokens] for tokens in best]


def rates(
    found: Sequence[Sequence[Sequence[str]]], words: Sequence[frozenset[str]]
) -> Float[np.ndarray, "subject layer"]:
    """The rates in percent; NaN where none of the highest tokens is a word.

    Args:
        found: As `nearest_words` gives them.
        words: Of every subject.
    """
    of_subjects = zip(found, words, strict=True)
    return np.array([[rate(layer, own) for layer in rows] for rows, own in of_subjects])


def rate(found: Sequence[str], words: frozenset[str]) -> float:
    """Percentage of the words found that are the subject's; NaN without any.

    Args:
        found: Words in lower case; "" is left out.
    """
    kept = [word for word in found if word]
    hits = sum(word in words for word in kept)
    return 100 * hits / len(kept) if kept else float("nan")
