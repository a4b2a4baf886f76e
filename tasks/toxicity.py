"""Toxic text: the concept is to predict toxic text; all other text is retained.

Li, Davies & Nadeau (2023), "Circuit Breaking: Removing Model Behaviors with Targeted
Ablation", https://arxiv.org/abs/2309.05973. Departure: neutral text of the same style
as the toxic text is retained as well as encyclopaedic text. With encyclopaedic text
alone the mask also damages the model on neutral text of the toxic style. One text is
one row of at most `max_length` tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.data.sampling import draw, draw_from
from circuitcut.data.text.files import labelled_texts, read_retained, read_rows
from circuitcut.data.text.records import TEXT_KINDS, TextCorpus, TextKind, TextRecord
from circuitcut.data.text.splits import split_retained, split_texts
from circuitcut.data.text.toxicity_generated import generate_toxicity
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
from circuitcut.tasks.language_rows import (
    Row,
    Tokens,
    collate,
    counted_nll,
    of_vocabulary,
    pad_id_of,
    prefix_ids,
    share,
    targets_of,
    tokenize,
    without_end,
)
from circuitcut.tasks.settings.toxicity import DEFAULTS
from circuitcut.tasks.toxicity_classifier import (
    Scorer,
    check_words_recur,
    classifier_scores,
    detoxify_scorer,
    fit_classifier,
)
from circuitcut.tasks.toxicity_sampling import PROMPT_TOKENS, sampled

BATCH_SHARES: dict[TextKind, int] = {"toxic": 3, "neutral": 4, "wiki": 1}
"""Ratio of the kinds of text in a mask-training batch. Encyclopaedic texts are the
longest: in equal number they would be three quarters of the retained tokens, and the
neutral texts would be retained less well."""


class ToxicityTask(Task):
    """Language modelling of toxic, neutral and (if the data have them) other texts.

    Concept positions are the tokens of toxic texts; if a text has marked spans, only
    their tokens. The tokens of all other texts are retained. The end token of a text is
    a target in fine-tuning but is not part of any score. Batches hold `kind`, an index
    into `TEXT_KINDS`.
    """

    name: ClassVar[str] = "toxicity"
    head: ClassVar[Head] = "causal_lm"
    concept_metric = Metric("toxic_nll", False, "nats/token", 0.0, "loss on toxic text")
    retain_metric = Metric("retain_nll", False, "nats/token", 0.0, "loss on other text")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> TextCorpus:
        """Built-in texts, or the user's texts (docs/formats.md)."""
        to_retain: list[TextRecord] = []
        if options.retain_data is not None:
            to_retain = read_retained(options.retain_data, options.text_column)
        if options.data is None:
            corpus = generate_toxicity(options.split_seed)
            return _with_retained(corpus, to_retain, options.split_seed)
        records = labelled_texts(
            read_rows(
                options.data,
                options.data_format,
                options.hub_config,
                options.hub_revision,
            ),
            text_column=options.text_column,
            label_column=options.label_column,
            concept_values=options.concept_values,
            all_toxic=options.retain_data is not None,
        )
        known = {record.text for record in records}
        records += [record for record in to_retain if record.text not in known]
        corpus = split_texts(records, seed=options.split_seed)
        if options.toxicity_scorer == "builtin":
            check_words_recur([record.text for record in corpus.records["base"]])
        return corpus

    def __init__(self, corpus: TextCorpus, tokenizer: Any, options: TaskOptions):
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_length = options.max_length
        self.concept_metric = of_vocabulary(self.concept_metric, tokenizer)
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)
        self._prefix = prefix_ids(tokenizer, options)
        self._n_prompts = options.n_prompts
        self._scorer_name = options.toxicity_scorer
        self._rows: dict[str, dict[int, Row]] = {}
        self._indices = {
            split: {
                kind: [i for i, record in enumerate(records) if record.kind == kind]
                for kind in TEXT_KINDS
            }
            for split, records in corpus.records.items()
        }

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Texts of the kinds that the split has, in the ratio of `BATCH_SHARES`."""
        pools = {kind: pool for kind, pool in self._indices[split].items() if pool}
        total = sum(BATCH_SHARES[kind] for kind in pools)
        chosen: list[int] = []
        before = 0
        for kind, pool in pools.items():
            after = before + BATCH_SHARES[kind]
            n = size * after // total - size * before // total
            before = after
            if n:
                drawn = draw(len(pool), step, n, "mask", split, kind, seed)
                chosen += [pool[place] for place in drawn]
        return self._collated(split, chosen)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Texts of all kinds; with `limit`, only the first `limit` toxic texts."""
        pool: Sequence[int] = range(self.n_examples(split))
        if limit is not None:
            toxic = self._indices[split]["toxic"]
            check_limit(limit, len(toxic), split)
            pool = toxic[:limit]
        chosen = draw(len(pool), step, size, "finetune", split, seed)
        return self._collated(split, [pool[i] for i in chosen])

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Neutral and encyclopaedic texts, drawn epoch by epoch.

        Raises:
            UserError: When the split has no such text.
        """
        indices = self._indices[split]
        pool = [i for kind in TEXT_KINDS if kind != "toxic" for i in indices[kind]]
        chosen = draw_from(pool, step, size, "without concept", split, seed)
        return self._collated(split, chosen)

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """All texts once, in the order of the corpus."""
        for piece in self.pieces(split, range(self.n_examples(split)), size):
            yield self._collated(split, piece)

    def n_examples(self, split: Split) -> int:
        """Number of texts of a split."""
        return len(self._corpus.records[split])

    def counted(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        """Tokens of the concept and retained ones."""
        return batch["concept"] | batch["retain"]

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Summed nats and number of tokens for each kind of text."""
        nll = counted_nll(self.logits(model, batch), batch, self.counted(batch))
        counts = {}
        for index, kind in enumerate(TEXT_KINDS):
            counted = batch["concept" if kind == "toxic" else "retain"]
            where = counted & (batch["kind"] == index)[:, None]
            counts[f"{kind}_nats"] = (nll * where).sum(-1)
            counts[f"{kind}_tokens"] = where.sum(-1).float()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Nats per token of toxic, neutral, encyclopaedic and all retained text."""
        scores = {
            f"{kind}_nll": share(counts[f"{kind}_nats"], counts[f"{kind}_tokens"])
            for kind in TEXT_KINDS
        }
        scores["retain_nll"] = share(
            counts["neutral_nats"] + counts["wiki_nats"],
            counts["neutral_tokens"] + counts["wiki_tokens"],
        )
        return scores

    @property
    def retain_losses(self) -> tuple[str, ...]:
        """Losses of all retained text, of neutral and of encyclopaedic text."""
        kinds = [f"{kind}_nll" for kind in TEXT_KINDS if kind != "toxic"]
        return (self.retain_metric.name, *kinds)

    def sampled_scores(
        self,
        model: nn.Module,
        cut: Callable[[], AbstractContextManager[Any]],
        *,
        seed: int,
    ) -> dict[str, float]:
        """Share of toxic continuations, their perplexity, the classifier's accuracy.

        The model continues up to `n_prompts` held-out texts, half of them toxic and
        half neutral, after their first eight tokens (or after the first half of a
        shorter text). The built-in classifier is trained on `base`; the classifier's
        accuracy is measured on held-out texts.
        """
        prompts = self._prompts()
        end_id = self._tokenizer.eos_token_id
        special = set(self._tokenizer.all_special_ids) - {end_id}
        continuations, perplexity = sampled(
            model,
            cut,
            prompts,
            end_id=end_id,
            banned_ids=sorted(special),
            seed=seed,
        )
        texts = self._tokenizer.batch_decode([row.new for row in continuations])
        is_toxic = self._scorer(texts)
        n_toxic = len(self._prompt_rows("toxic"))
        return {
            "toxic_share": float(is_toxic.mean()),
            "toxic_share_of_toxic_prompts": float(is_toxic[:n_toxic].mean()),
            "continuation_perplexity": perplexity,
            "n_prompts": float(len(prompts)),
            **self._scorer_scores,
        }

    @cached_property
    def _scorer(self) -> Scorer:
        if self._scorer_name == "detoxify":
            return detoxify_scorer()
        return fit_classifier(self._texts("base", True), self._texts("base", False))

    @cached_property
    def _scorer_scores(self) -> dict[str, float]:
        return classifier_scores(
            self._scorer, self._texts("heldout", True), self._texts("heldout", False)
        )

    def _texts(self, split: str, toxic: bool) -> list[str]:
        records = self._corpus.records[split]
        return [r.text for r in records if (r.kind == "toxic") == toxic]

    def _prompts(self) -> list[list[int]]:
        return self._prompt_rows("toxic") + self._prompt_rows("neutral")

    def _prompt_rows(self, kind: TextKind) -> list[list[int]]:
        """First tokens of held-out texts of a kind, with special tokens before them."""
        n_of_kind = (self._n_prompts + (kind == "toxic")) // 2
        indices = self._indices["heldout"][kind][:n_of_kind]
        prompts = []
        for row in self._rows_at("heldout", indices):
            n_special = int(row.real.argmax())
            n_text = len(row.inputs) - n_special
            n_prompt = min(PROMPT_TOKENS, max(1, n_text // 2))
            prompts.append(row.inputs[: n_special + n_prompt].tolist())
        return prompts

    def _rows_at(self, split: str, indices: Sequence[int]) -> list[Row]:
        """Rows of some texts; each text is tokenised at its first use."""
        rows = self._rows.setdefault(split, {})
        new = [i for i in indices if i not in rows]
        records = [self._corpus.records[split][i] for i in new]
        texts = [record.text for record in records]
        coded = tokenize(
            self._tokenizer, texts, max_tokens=self._max_length + 1, prefix=self._prefix
        )
        for i, record, tokens in zip(new, records, coded, strict=True):
            rows[i] = self._row(record, without_end(tokens), i)
        return [rows[i] for i in indices]

    def _row(self, record: TextRecord, tokens: Tokens, cluster: int) -> Row:
        end = self._tokenizer.eos_token_id
        end = NO_TARGET if end is None else end
        n = min(len(tokens.ids), self._max_length)
        nexts = [*targets_of(tokens), end][:n]
        counted = (np.arange(1, n + 1) < len(tokens.ids)) & (
            np.array(nexts) != NO_TARGET
        )
        marked = counted
        if record.spans:
            spans = [*tokens.spans[1:], (0, 0)][:n]
            marked = counted & np.array(
                [_overlaps(span, record.spans) for span in spans]
            )
        toxic = record.kind == "toxic"
        nowhere = np.zeros(n, bool)
        return Row(
            inputs=np.array(tokens.ids[:n], np.int32),
            targets=np.array(nexts, np.int32),
            real=~np.array(tokens.special[:n]),
            concept=marked if toxic else nowhere,
            retain=nowhere if toxic else counted,
            cluster=cluster,
            unseen=record.unseen,
            numbers={"kind": TEXT_KINDS.index(record.kind)},
        )

    def _collated(self, split: str, indices: Sequence[int]) -> Batch:
        return collate(self._rows_at(split, indices), pad_id_of(self._tokenizer))


def _with_retained(
    corpus: TextCorpus, texts: Sequence[TextRecord], seed: int
) -> TextCorpus:
    """The corpus with further texts to retain in every split."""
    if not texts:
        return corpus
    further = split_retained(texts, seed=seed)
    return TextCorpus(
        {split: (*rows, *further[split]) for split, rows in corpus.records.items()}
    )


def _overlaps(span: tuple[int, int], marked: Sequence[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in marked)
