"""Words of running text as a decoder predicts them: labelled words are the concept.

The language-model side of Lo et al. (2024), "Large Language Models Relearn Removed
Concepts", https://arxiv.org/abs/2401.01814, who prune and retrain GPT-2 with the words
of a concept. A word is the concept's by its entity type, or by a list of words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.data.ner.running_text import RunningText
from circuitcut.data.ner.tagged import entity_type
from circuitcut.data.sampling import draw, draw_from, shuffled
from circuitcut.tasks.base import (
    NO_TARGET,
    Batch,
    Head,
    Metric,
    Split,
    Task,
    TaskOptions,
    check_limit,
)
from circuitcut.tasks.language_rows import counted_nll, of_vocabulary, share
from circuitcut.tasks.selected_logits import spread
from circuitcut.tasks.settings.words import DEFAULTS
from circuitcut.tasks.tagged_data import tagged_corpus
from circuitcut.tasks.token_rows import TokenRows

CONCEPT_SHARE = 3 / 8
"""Share of sentences with the concept in a mask-training batch, as in `locations`."""


@dataclass(frozen=True)
class _SplitRows:
    """A tokenised split; `of_concept` is True at every piece of a concept's word."""

    tokens: TokenRows
    of_concept: Bool[Tensor, "example seq"]
    with_concept: list[int]
    without_concept: list[int]
    cluster: Int[Tensor, "example"]
    unseen: Bool[Tensor, "example"]


class WordsTask(Task):
    """Next tokens of sentences; those of the concept's words are the concept.

    Concept positions are those before a piece of the concept's words; the positions
    before all other pieces are retained. Scores: `concept_nll` and `retain_nll` in nats
    per token, and the shares `concept_accuracy` and `retain_accuracy` of tokens that
    are the most probable ones. Batches also hold `word_piece` (batch, seq; True at the
    last piece of every word) and `word_concept` (the same of the concept's words),
    which say what a hidden state is of, where `concept` says what it predicts.
    """

    name: ClassVar[str] = "words"
    head: ClassVar[Head] = "causal_lm"
    concept_metric = Metric("concept_nll", False, "nats/token")
    retain_metric = Metric(
        "retain_nll", False, "nats/token", label="loss on other words"
    )
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> RunningText:
        """The data of `locations` (docs/formats.md).

        Raises:
            UserError: When they are missing or malformed, or do not have the concept.
        """
        return RunningText(tagged_corpus(options))

    def __init__(self, corpus: RunningText, tokenizer: Any, options: TaskOptions):
        self.corpus = corpus
        self.concept = ",".join(corpus.tagged.concept_types)
        self._tokenizer = tokenizer
        self._max_length = options.max_length
        self._splits: dict[Split, _SplitRows] = {}
        named = " and ".join(sorted(corpus.tagged.concept_types))
        concept = replace(self.concept_metric, label=f"loss on {named} words")
        self.concept_metric = of_vocabulary(concept, tokenizer)
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)

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

    def counted(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        """Tokens of the concept and retained ones."""
        return batch["concept"] | batch["retain"]

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Per sentence: summed nats, tokens and tokens that are predicted, by side."""
        where = self.counted(batch)
        logits = self.logits(model, batch)
        nll = counted_nll(logits, batch, where)
        hits = spread((logits.argmax(-1) == batch["targets"][where]).float(), where)
        counts = {}
        for side in ("concept", "retain"):
            counts[f"{side}_nats"] = (nll * batch[side]).sum(-1).float().cpu()
            counts[f"{side}_tokens"] = batch[side].sum(-1).float().cpu()
            counts[f"{side}_hits"] = (hits * batch[side]).sum(-1).cpu()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Nats per token and share of predicted tokens of both sides; NaN without."""
        scores = {}
        for side in ("concept", "retain"):
            tokens = counts[f"{side}_tokens"]
            scores[f"{side}_nll"] = share(counts[f"{side}_nats"], tokens)
            scores[f"{side}_accuracy"] = share(counts[f"{side}_hits"], tokens)
        return scores

    def _rows(self, split: Split) -> _SplitRows:
        """The tokenised split; the first call tokenises it."""
        if split not in self._splits:
            corpus, sentences = self.corpus.tagged, self.corpus.splits[split]
            tokens = TokenRows.tokenised(
                sentences,
                corpus.labels,
                self._tokenizer,
                label_piece="last",
                max_length=self._max_length,
            )
            of_concept = torch.zeros_like(tokens.real)
            for row, sentence in enumerate(sentences):
                kinds = [
                    entity_type(tag) in corpus.concept_types for tag in sentence.tags
                ]
                named = torch.tensor([*kinds, False])  # the last one is NO_WORD
                of_concept[row] = named[tokens.words[row].long()]
            has_concept = (of_concept[:, 1:] & tokens.real[:, 1:]).any(1)
            self._splits[split] = _SplitRows(
                tokens,
                of_concept,
                has_concept.nonzero()[:, 0].tolist(),
                (~has_concept).nonzero()[:, 0].tolist(),
                torch.tensor([sentence.document for sentence in sentences]),
                torch.tensor(corpus.unseen(split)),
            )
        return self._splits[split]

    def _collated(self, split: Split, members: Sequence[int]) -> Batch:
        rows, index = self._rows(split), torch.tensor(members)
        lengths = rows.tokens.lengths[index]
        seq = int(lengths.max())
        ids = rows.tokens.input_ids[index, :seq].long()
        real, of_concept = rows.tokens.real[index, :seq], rows.of_concept[index, :seq]
        is_target = _next(real, filler=False)
        concept = _next(of_concept, filler=False) & is_target
        # the piece of a word that has its label
        word_piece = rows.tokens.targets[index, :seq] != NO_TARGET
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(seq) < lengths[:, None]).long(),
            "targets": torch.where(is_target, _next(ids, filler=0), NO_TARGET),
            "concept": concept,
            "retain": is_target & ~concept,
            "weights": is_target.float(),
            "real": real,
            "word": rows.tokens.words[index, :seq].long(),
            "word_piece": word_piece,
            "word_concept": word_piece & of_concept,
            "example": index,
            "cluster": rows.cluster[index],
            "unseen": rows.unseen[index],
        }


def _next(values: Tensor, *, filler: int | bool) -> Tensor:
    """The value of the following position: (batch, seq) -> (batch, seq)."""
    last = torch.full_like(values[:, :1], filler)
    return torch.cat([values[:, 1:], last], dim=1)
