"""What tasks on sentences share: which of them make a batch.

Some sentences of a split hold the concept, the others do not.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.sampling import draw, draw_from, shuffled
from circuitcut.tasks.base import Batch, Split, Task, check_limit
from circuitcut.tasks.token_rows import TokenRows

CONCEPT_SHARE = 3 / 8
"""Share of sentences with the concept in a mask-training batch (6 of 16)."""


@dataclass(frozen=True)
class SentenceRows:
    """A tokenised split."""

    tokens: TokenRows
    has_concept: Bool[Tensor, "example"]
    cluster: Int[Tensor, "example"]
    unseen: Bool[Tensor, "example"]

    @cached_property
    def with_concept(self) -> list[int]:
        """Numbers of the sentences that hold the concept."""
        return self.has_concept.nonzero()[:, 0].tolist()

    @cached_property
    def without_concept(self) -> list[int]:
        """Numbers of the other sentences."""
        return (~self.has_concept).nonzero()[:, 0].tolist()


S = TypeVar("S", bound=SentenceRows)


class SentenceTask(Task, Generic[S]):
    """A task whose examples are the sentences of `corpus.splits`."""

    corpus: Any
    _splits: dict[Split, S]

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """A share `CONCEPT_SHARE` of sentences with the concept, the rest without.

        If every sentence has the concept, the batch consists of such sentences.
        """
        rows = self._rows(split)
        n_concept = size
        if rows.without_concept:
            n_concept = max(1, round(CONCEPT_SHARE * size))
        members: list[int] = []
        for kind, pool, n in (
            ("concept", rows.with_concept, n_concept),
            ("other", rows.without_concept, size - n_concept),
        ):
            if n:
                members += [
                    pool[i] for i in draw(len(pool), step, n, kind, split, seed)
                ]
        return self._collated(split, members)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Sentences drawn epoch by epoch; with `limit` from sentences with the concept.

        These are the first `limit` sentences in an order shuffled with `seed`: a larger
        limit uses all sentences of a smaller one.

        Raises:
            UserError: When fewer than `limit` sentences have the concept.
        """
        pool: Sequence[int] = range(self.n_examples(split))
        if limit is not None:
            with_concept = self._rows(split).with_concept
            check_limit(limit, len(with_concept), split)
            order = shuffled(len(with_concept), "limit", split, seed)
            pool = [with_concept[member] for member in order[:limit]]
        members = draw(len(pool), step, size, "finetune", split, seed)
        return self._collated(split, [pool[member] for member in members])

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Sentences without the concept, drawn epoch by epoch.

        Raises:
            UserError: When every sentence of the split has the concept.
        """
        pool = self._rows(split).without_concept
        chosen = draw_from(pool, step, size, "without concept", split, seed)
        return self._collated(split, chosen)

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Batches of sentences of similar length, in a fixed shuffled order."""
        rows = self._rows(split).tokens.lengths.argsort(stable=True).tolist()
        batches = list(self.pieces(split, rows, size))
        for number in shuffled(len(batches), "evaluation", split):
            yield self._collated(split, list(batches[number]))

    def n_examples(self, split: Split) -> int:
        """Number of sentences."""
        return len(self.corpus.splits[split])

    def words_of(self, split: Split) -> list[tuple[str, ...]]:
        """The words of every sentence."""
        return [sentence.words for sentence in self.corpus.splits[split]]

    def _rows(self, split: Split) -> S:
        """The tokenised split; the first call tokenises it."""
        if split not in self._splits:
            self._splits[split] = self._tokenised(split)
        return self._splits[split]

    @abstractmethod
    def _tokenised(self, split: Split) -> S: ...

    @abstractmethod
    def _collated(self, split: Split, members: Sequence[int]) -> Batch: ...
