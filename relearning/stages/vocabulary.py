"""The words of a split, with how often they occur and how often as the concept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.attribution.words.states import (
    Words,
    WordSource,
    pooled_embeddings,
    words_of,
)
from circuitcut.relearning.top_words import MIN_COUNT, as_word
from circuitcut.storage.errors import UserError

NONE = -1
"""Stands for a word that is not in the vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that occur at least `MIN_COUNT` times, sorted; lower and upper case differ.

    Where the task's texts are tokens, a word is a token.
    """

    words: tuple[str, ...]
    counts: Int[Tensor, "type"]
    concept_counts: Int[Tensor, "type"]
    """Occurrences that are labelled as the concept."""
    _of_example: tuple[Int[Tensor, "_number"], ...] | None
    """Place of every word of every example; None for tokens."""
    _of_token: Int[Tensor, "token"] | None

    @classmethod
    def of(cls, source: WordSource, tokenizer: Any) -> "Vocabulary":
        """Those of the labelled words of a split.

        Raises:
            UserError: When no word occurs often enough, or none of the concept's does.
        """
        texts = source.task.words_of(source.split)
        counts: dict[str, int] = {}
        of_concept: dict[str, int] = {}
        for words in words_of(source):
            named = zip(_names(words, texts, tokenizer), words.is_concept, strict=True)
            for name, is_concept in named:
                counts[name] = counts.get(name, 0) + 1
                of_concept[name] = of_concept.get(name, 0) + bool(is_concept)
        kept = sorted(name for name, n in counts.items() if n >= MIN_COUNT)
        if not any(of_concept[name] for name in kept):
            raise UserError(
                f"split {source.split!r} has no word of the concept that occurs "
                f"{MIN_COUNT} times; give more data, another --concept or --words_split"
            )
        place = {name: i for i, name in enumerate(kept)}
        by_example = by_token = None
        if texts is None:
            tokens = range(len(tokenizer))
            names = [place.get(as_word(tokenizer, t), NONE) for t in tokens]
            by_token = torch.tensor(names)
        else:
            by_example = tuple(
                torch.tensor([place.get(w, NONE) for w in text], dtype=torch.long)
                for text in texts
            )
        return cls(
            tuple(kept),
            torch.tensor([counts[name] for name in kept]),
            torch.tensor([of_concept[name] for name in kept]),
            by_example,
            by_token,
        )

    @property
    def is_concept(self) -> Tensor:
        """Words of which at least half of the occurrences are the concept."""
        return 2 * self.concept_counts >= self.counts

    def places(self, words: Words) -> Int[Tensor, "word"]:
        """Place of each word in the vocabulary, `NONE` for rare ones."""
        if self._of_token is not None:
            return self._of_token[words.tokens.cpu()]
        assert self._of_example is not None
        pairs = zip(words.examples.tolist(), words.numbers.tolist(), strict=True)
        places = [int(self._of_example[example][n]) for example, n in pairs]
        return torch.tensor(places, dtype=torch.long)

    def embeddings(
        self, source: WordSource, model: nn.Module
    ) -> Float[Tensor, "type d_model"]:
        """Vectors of the words in the model's table of input embeddings.

        Of a word with several pieces their mean, at its first occurrence.
        """
        vectors: Tensor | None = None
        missing = torch.ones(len(self.words), dtype=torch.bool)
        for words, rows in pooled_embeddings(source, model):
            if vectors is None:
                vectors = torch.zeros(len(self.words), rows.shape[1])
            for place, row in zip(self.places(words).tolist(), rows.cpu(), strict=True):
                if place != NONE and missing[place]:
                    vectors[place], missing[place] = row, False
        assert vectors is not None
        return vectors

    def record(self) -> dict[str, Any]:
        """The content of words.json."""
        return {
            "words": list(self.words),
            "counts": self.counts.tolist(),
            "concept_counts": self.concept_counts.tolist(),
        }


def _names(
    words: Words, texts: Sequence[Sequence[str]] | None, tokenizer: Any
) -> Iterator[str]:
    if texts is None:
        yield from (as_word(tokenizer, token) for token in words.tokens.tolist())
        return
    pairs = zip(words.examples.tolist(), words.numbers.tolist(), strict=True)
    yield from (texts[example][number] for example, number in pairs)
