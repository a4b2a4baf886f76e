"""Words of running text as a decoder predicts them: labelled words are the concept.

The language-model side of Lo et al. (2024), "Large Language Models Relearn Removed
Concepts", https://arxiv.org/abs/2401.01814, who prune and retrain GPT-2 with the words
of a concept. A word is the concept's by its entity type, or by a list of words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.data.ner.running_text import RunningText
from circuitcut.data.ner.tagged import entity_type
from circuitcut.tasks.base import (
    NO_TARGET,
    Batch,
    Head,
    Metric,
    Split,
    TaskOptions,
)
from circuitcut.tasks.language_rows import counted_nll, of_vocabulary, share
from circuitcut.tasks.rows.sentences import SentenceRows, SentenceTask
from circuitcut.tasks.selected_logits import spread
from circuitcut.tasks.settings.words import DEFAULTS
from circuitcut.tasks.tagged_data import tagged_corpus
from circuitcut.tasks.token_rows import TokenRows


@dataclass(frozen=True)
class _Rows(SentenceRows):
    """A tokenised split; `of_concept` is True at every piece of a concept's word."""

    of_concept: Bool[Tensor, "example seq"]


class WordsTask(SentenceTask[_Rows]):
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
        self._splits = {}
        named = " and ".join(sorted(corpus.tagged.concept_types))
        concept = replace(self.concept_metric, label=f"loss on {named} words")
        self.concept_metric = of_vocabulary(concept, tokenizer)
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)

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

    def _tokenised(self, split: Split) -> _Rows:
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
            kinds = [entity_type(tag) in corpus.concept_types for tag in sentence.tags]
            named = torch.tensor([*kinds, False])  # the last one is NO_WORD
            of_concept[row] = named[tokens.words[row].long()]
        return _Rows(
            tokens,
            (of_concept[:, 1:] & tokens.real[:, 1:]).any(1),
            torch.tensor([sentence.document for sentence in sentences]),
            torch.tensor(corpus.unseen(split)),
            of_concept,
        )

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
