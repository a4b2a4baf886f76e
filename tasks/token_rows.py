"""Tagged sentences as padded word pieces, with the label of a word at one piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.ner.tagged import TaggedSentence
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, NO_WORD


@dataclass(frozen=True)
class TokenRows:
    """A tokenised split: row i is sentence i, padded to the longest sentence."""

    input_ids: Int[Tensor, "example seq"]
    targets: Int[Tensor, "example seq"]
    """Label of each word at one of its pieces; `NO_TARGET` at all other pieces."""
    real: Bool[Tensor, "example seq"]
    """True at pieces of the text, which are neither padding nor special tokens."""
    words: Int[Tensor, "example seq"]
    """Number of the word, in its sentence, that each piece is of; `NO_WORD` at padding
    and special tokens."""
    lengths: Int[Tensor, "example"]

    @classmethod
    def tokenised(
        cls,
        sentences: Sequence[TaggedSentence],
        labels: Sequence[str],
        tokenizer: Any,
        *,
        label_piece: Literal["first", "last"],
        max_length: int,
    ) -> "TokenRows":
        """Pieces of every sentence, at most `max_length` per sentence.

        A word without any piece has no target.

        Raises:
            UserError: When the tokenizer does not give the characters of its pieces.
        """
        if tokenizer is None or not getattr(tokenizer, "is_fast", False):
            raise UserError(
                "token classification needs a fast tokenizer (one that gives offsets), "
                f"got {type(tokenizer).__name__}"
            )
        encoded = tokenizer(
            [" ".join(sentence.words) for sentence in sentences],
            truncation=True,
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        label_ids = {label: index for index, label in enumerate(labels)}
        targets, words = [], []
        for row, sentence in enumerate(sentences):
            special = encoded["special_tokens_mask"][row]
            pieces = _pieces_and_words(
                sentence, encoded["offset_mapping"][row], special
            )
            of_piece = dict(pieces)
            words.append([of_piece.get(i, NO_WORD) for i in range(len(special))])
            if label_piece == "first":
                pieces.reverse()
            targets.append([NO_TARGET] * len(special))
            # the label goes to the last piece of each word in the order of `pieces`
            for word, piece in {word: piece for piece, word in pieces}.items():
                targets[row][piece] = label_ids[sentence.tags[word]]
        special_mask = _padded(encoded["special_tokens_mask"], 1)
        return cls(
            _padded(encoded["input_ids"], padding_id(tokenizer)),
            _padded(targets, NO_TARGET),
            special_mask == 0,
            _padded(words, NO_WORD),
            torch.tensor([len(ids) for ids in encoded["input_ids"]]),
        )


def padding_id(tokenizer: Any) -> int:
    """The padding token: the tokenizer's padding token, else its end token, else 0."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _pieces_and_words(
    sentence: TaggedSentence, offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> list[tuple[int, int]]:
    """Pairs of a piece and the word in which it ends; spaces are left out."""
    word_at: list[int | None] = []
    for index, word in enumerate(sentence.words):
        word_at += [index] * len(word) + [None]
    return [
        (piece, at)
        for piece, ((start, stop), is_special) in enumerate(
            zip(offsets, special, strict=True)
        )
        if stop > start and not is_special and (at := word_at[stop - 1]) is not None
    ]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Int[Tensor, "row seq"]:
    length = max(map(len, rows))
    padded = [[*row, *[filler] * (length - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int32)
