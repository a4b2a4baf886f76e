"""Named entities, one type of which (by default locations) is the concept.

The task is token classification. Concept positions are the words tagged with the
concept's type; all other words are retained. The metric is span F1 as in `conlleval`.
Metric, retain weights and the mixture of batches follow Lo et al. (2024), "Large
Language Models Relearn Removed Concepts", https://arxiv.org/abs/2401.01814. Departure:
our data have five splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.data.ner.corpus import NerCorpus
from circuitcut.data.ner.tagged import OUTSIDE, entity_type, entity_types
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import (
    NO_TARGET,
    Batch,
    Head,
    Metric,
    Split,
    TaskOptions,
)
from circuitcut.tasks.rows.sentences import SentenceRows, SentenceTask
from circuitcut.tasks.settings.locations import DEFAULTS
from circuitcut.tasks.span_counts import (
    SpanCounter,
    mean_defined,
    precision_recall_f1,
    ratio,
    sums,
)
from circuitcut.tasks.tagged_data import tagged_corpus
from circuitcut.tasks.token_rows import TokenRows

ENTITY_WEIGHT = 2.0
"""Weight of a retained word inside an entity; other words have weight 1."""
N_DONORS = 500
"""Number of sentences whose words tagged `O` replace locations in counterfactuals."""
OUTCOMES = ("tp", "fp", "fn")


class LocationsTask(SentenceTask[SentenceRows]):
    """Tags of words; one entity type, or several, is the concept.

    Scores: `concept_*` is span precision, recall and F1 of the concept. `retain_*` is
    the mean over the other types; `retain_f1_micro` pools their spans. `*_clean` uses
    only sentences without the concept, in which no location can be tagged as another
    type. `token_accuracy` is the share of words with the correct tag. These are
    fractions; `*_nll` is in nats per word.
    """

    name: ClassVar[str] = "locations"
    head: ClassVar[Head] = "token_classification"
    concept_metric = Metric("concept_f1", True, "fraction")
    retain_metric = Metric("retain_f1", True, "fraction", label="other types' span F1")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> NerCorpus:
        """Built-in sentences, files of tagged text or a hub data set (docs/formats.md).

        Raises:
            UserError: When the data are missing or malformed, or do not have the
                concept.
        """
        return tagged_corpus(options)

    def __init__(self, corpus: NerCorpus, tokenizer: Any, options: TaskOptions):
        self.corpus = corpus
        self.concept = ",".join(corpus.concept_types)
        self.labels = corpus.labels
        self._tokenizer = tokenizer
        self._options = options
        self._splits = {}
        self._ordinary: dict[int, list[list[int]]] = {}
        self._types = entity_types(self.labels)
        named = " and ".join(sorted(corpus.concept_types))
        self.concept_metric = replace(self.concept_metric, label=f"{named} span F1")
        self._count_spans = SpanCounter(self.labels, self._types)
        types = [entity_type(label) for label in self.labels]
        self._is_concept = torch.tensor(
            [kind in corpus.concept_types for kind in types]
        )
        self._weight = torch.tensor(
            [
                1.0 if kind in (None, *corpus.concept_types) else ENTITY_WEIGHT
                for kind in types
            ]
        )

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Per sentence: spans by outcome and type, correct words, words and nats."""
        logits = model(**self.inputs(batch)).logits.float()
        targets = batch["targets"]
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=NO_TARGET,
            reduction="none",
        ).view_as(targets)
        counts = {
            "concept_nll": (losses * batch["concept"]).sum(1),
            "concept_words": batch["concept"].sum(1),
            "retain_nll": (losses * batch["retain"]).sum(1),
            "retain_words": batch["retain"].sum(1),
        }
        predicted = logits.argmax(-1)
        hits = (predicted == targets).sum(1)
        clean = batch["concept"].sum(1) == 0
        counts |= {"hits": hits, "words": (targets != NO_TARGET).sum(1)}
        counts |= {f"clean_{name}": counts[name] * clean for name in ("hits", "words")}
        counts |= self._span_counts(targets.cpu(), predicted.cpu())
        return {name: value.float().cpu() for name, value in counts.items()}

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Scores of a set of sentences (see the class); NaN where undefined."""
        total = sums(counts)
        retained = [
            kind for kind in self._types if kind not in self.corpus.concept_types
        ]
        of = {kind: _spans_of(total, "", [kind]) for kind in self._types}
        clean = {kind: _spans_of(total, "clean_", [kind]) for kind in retained}
        scores = dict(
            zip(
                ("concept_precision", "concept_recall", "concept_f1"),
                _spans_of(total, "", self.corpus.concept_types),
                strict=True,
            )
        )
        for index, name in enumerate(("precision", "recall", "f1")):
            scores[f"retain_{name}"] = mean_defined(
                [of[kind][index] for kind in retained]
            )
        return {
            **scores,
            "retain_f1_micro": _spans_of(total, "", retained)[2],
            "retain_f1_clean": mean_defined([f1 for *_, f1 in clean.values()]),
            "token_accuracy": ratio(total["hits"], total["words"]),
            "token_accuracy_clean": ratio(total["clean_hits"], total["clean_words"]),
            "concept_nll": ratio(total["concept_nll"], total["concept_words"]),
            "retain_nll": ratio(total["retain_nll"], total["retain_words"]),
            **{f"f1_{kind}": f1 for kind, (*_, f1) in of.items()},
        }

    def concept_classes(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position concept"]:
        """All labels of the concept, `B-` and `I-`."""
        targets = batch["targets"][where]
        classes = self._is_concept.nonzero().squeeze(1).to(targets.device)
        return classes.expand(len(targets), -1)

    def counterfactual(self, batch: Batch) -> Batch:
        """The same batch with each word of the concept replaced by a word tagged `O`.

        The new words have the same number of pieces and come from the `mask` split. The
        generator's seed is computed from the batch. If no word has the right number of
        pieces, several words of one piece are used. Targets do not change.

        Raises:
            UserError: When no word tagged `O` is a single piece.
        """
        words = self._ordinary_words()
        if not words.get(1):
            raise UserError(
                "a counterfactual needs words of one piece tagged O in the split "
                "'mask', got none; use another model or --ablation mean"
            )
        ids = batch["input_ids"].clone()
        rng = torch.Generator().manual_seed(int(ids.sum()))
        for row, start, stop in self._concept_words(batch):
            n_pieces = stop - start
            choices, repeats = words.get(n_pieces), 1
            if not choices:
                choices, repeats = words[1], n_pieces
            picks = torch.randint(len(choices), (repeats,), generator=rng).tolist()
            pieces = [piece for pick in picks for piece in choices[pick]]
            ids[row, start:stop] = torch.tensor(pieces, device=ids.device)
        return batch | {"input_ids": ids}

    def _tokenised(self, split: Split) -> SentenceRows:
        sentences = self.corpus.splits[split]
        tokens = TokenRows.tokenised(
            sentences,
            self.labels,
            self._tokenizer,
            label_piece=self._options.label_piece,
            max_length=self._options.max_length,
        )
        return SentenceRows(
            tokens,
            self._of_concept(tokens.targets).any(1),
            torch.tensor([sentence.document for sentence in sentences]),
            torch.tensor(self.corpus.unseen(split)),
        )

    def _of_concept(self, targets: Tensor) -> Tensor:
        return self._is_concept[targets.clamp(min=0)] & (targets != NO_TARGET)

    def _collated(self, split: Split, members: Sequence[int]) -> Batch:
        rows, index = self._rows(split), torch.tensor(members)
        lengths = rows.tokens.lengths[index]
        seq = int(lengths.max())
        targets = rows.tokens.targets[index, :seq].long()
        labelled, concept = targets != NO_TARGET, self._of_concept(targets)
        return {
            "input_ids": rows.tokens.input_ids[index, :seq].long(),
            "attention_mask": (torch.arange(seq) < lengths[:, None]).long(),
            "targets": targets,
            "concept": concept,
            "retain": labelled & ~concept,
            "weights": self._weight[targets.clamp(min=0)] * labelled,
            "real": rows.tokens.real[index, :seq],
            "word": rows.tokens.words[index, :seq].long(),
            "example": index,
            "cluster": rows.cluster[index],
            "unseen": rows.unseen[index],
        }

    def _span_counts(self, targets: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        spans = self._count_spans(targets, predicted, targets != NO_TARGET)
        clean = (~self._of_concept(targets).any(1)).long()
        counts = {}
        for outcome in OUTCOMES:
            for place, kind in enumerate(self._types):
                counts[f"{outcome}:{kind}"] = spans[outcome][:, place]
                counts[f"clean_{outcome}:{kind}"] = spans[outcome][:, place] * clean
        return counts

    def _ordinary_words(self) -> dict[int, list[list[int]]]:
        """Pieces of words tagged `O`, by the number of pieces of the word."""
        if not self._ordinary:
            tokens = self._rows("mask").tokens
            targets, real = tokens.targets[:N_DONORS], tokens.real[:N_DONORS]
            outside = targets == self.labels.index(OUTSIDE)
            by_n_pieces: dict[int, set[tuple[int, ...]]] = {}
            for row, start, stop in self._words(targets, real, outside):
                pieces = tuple(tokens.input_ids[row, start:stop].tolist())
                by_n_pieces.setdefault(len(pieces), set()).add(pieces)
            self._ordinary = {
                n: [list(pieces) for pieces in sorted(words)]
                for n, words in by_n_pieces.items()
            }
        return self._ordinary

    def _concept_words(self, batch: Batch) -> Iterator[tuple[int, int, int]]:
        return self._words(batch["targets"], batch["real"], batch["concept"])

    def _words(
        self, targets: Tensor, real: Tensor, where: Tensor
    ) -> Iterator[tuple[int, int, int]]:
        """Row, first piece and one past the last piece of the words at `where`."""
        for row in where.any(1).nonzero()[:, 0].tolist():
            labelled = (targets[row] != NO_TARGET).nonzero()[:, 0].tolist()
            text = real[row].nonzero()[:, 0].tolist()
            if self._options.label_piece == "first":
                bounds = [*labelled, text[-1] + 1]
            else:
                bounds = [text[0], *(piece + 1 for piece in labelled)]
            for piece, start, stop in zip(labelled, bounds, bounds[1:], strict=False):
                if where[row, piece]:
                    yield row, start, stop


def _spans_of(
    total: Mapping[str, float], prefix: str, kinds: Sequence[str]
) -> tuple[float, float, float]:
    tp, fp, fn = (
        sum((total[f"{prefix}{outcome}:{kind}"] for kind in kinds), 0.0)
        for outcome in OUTCOMES
    )
    return precision_recall_f1(tp, fp, fn)
