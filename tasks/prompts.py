"""The user's own prompts: a model gives the answer of each, and other text is retained.

The concept is the answer, one token, at the end of the prompt (decoders) or at its mask
token (encoders). Its rivals are wrong answers of the same kind. Retained are texts (by
their next tokens, or by their masked ones) and, for decoders, the other tokens of the
prompts. The built-in prompts ask for the capitals of invented countries.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.data.hub import HUB_PREFIX
from circuitcut.data.prompts.files import prompt_records
from circuitcut.data.prompts.generated import generate_facts
from circuitcut.data.prompts.records import (
    PromptRecord,
    PromptsCorpus,
    places,
    with_further_texts,
)
from circuitcut.data.prompts.splits import split_prompts
from circuitcut.data.sampling import draw, draw_from
from circuitcut.data.tables import read_hub_table, read_tables
from circuitcut.data.text.files import read_retained
from circuitcut.data.text.records import TextRecord
from circuitcut.data.text.splits import split_retained
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import (
    Batch,
    Head,
    Metric,
    Split,
    TaskOptions,
    check_limit,
)
from circuitcut.tasks.language_rows import (
    Row,
    collate,
    counted_nll,
    of_vocabulary,
    pad_id_of,
    prefix_ids,
    share,
)
from circuitcut.tasks.rows.answers import AnswerTask
from circuitcut.tasks.rows.prompts import PROMPT, Reader, prompt_rows, text_row
from circuitcut.tasks.settings.prompts import DEFAULTS

CONCEPT_SHARE = 0.5
"""Share of prompts in a mask-training batch; the rest is text to retain."""
logger = logging.getLogger(__name__)


class PromptsTask(AnswerTask):
    """Prompts with an answer of one token each, and texts to retain.

    Batches hold further integers per example: `kind` (`PROMPT` or `TEXT`), `position`
    (where the answer is predicted), `answer_id`, `named` (0: the data name no rivals)
    and `rival_ids` (batch, rival), in which the rivals of a prompt are repeated up to
    the largest number. Prompts whose answer is not a single token are left out, which
    is logged with their rows. The chance level of the accuracy is the mean of
    1 / (1 + number of rivals), and 1 / vocabulary where the data name none.

    Raises:
        UserError: When too few prompts can be asked, a split has none, or a prompt and
            its counterfactual are not aligned.
    """

    name: ClassVar[str] = "prompts"
    head: ClassVar[Head] = "language_model"
    concept_metric = Metric(
        "accuracy", True, "fraction", 0.0, "accuracy on the prompts"
    )
    retain_metric = Metric("retain_nll", False, "nats/token", 0.0, "loss on other text")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> PromptsCorpus:
        """Built-in facts, or tables of prompts (docs/formats.md)."""
        seed = options.split_seed
        further: Mapping[str, Sequence[TextRecord]] = {}
        if options.retain_data is not None:
            texts = read_retained(options.retain_data, options.text_column)
            further = split_retained(texts, seed=seed)
        if options.data is None:
            return with_further_texts(generate_facts(seed), further)
        if options.data.startswith(HUB_PREFIX):
            rows = read_hub_table(
                options.data, options.hub_config, options.hub_revision
            )
        else:
            rows = read_tables(Path(options.data), options.data_format)
        prompts, texts = prompt_records(rows, options.text_column, options.label_column)
        corpus = split_prompts(prompts, seed=seed)
        if texts:
            corpus = with_further_texts(corpus, split_retained(texts, seed=seed))
        return with_further_texts(corpus, further)

    def __init__(self, corpus: PromptsCorpus, tokenizer: Any, options: TaskOptions):
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._reader = Reader(
            tokenizer,
            options.masked_lm,
            options.max_length,
            prefix_ids(tokenizer, options),
        )
        if options.masked_lm and tokenizer.mask_token is None:
            raise UserError(
                "the tokenizer of a masked language model must have a mask token, got "
                "none; add mask_token to its tokenizer_config.json"
            )
        prompts = _prompts_of(corpus.everything())
        self._asked = prompt_rows(prompts, self._reader)
        if self._asked.n_left_out:
            logger.warning(
                "%d of %d prompts are left out (%s)",
                self._asked.n_left_out,
                len(prompts),
                self._asked.reasons(),
            )
        for split, records in corpus.records.items():
            if not any(record.text in self._asked.rows for record in records):
                raise UserError(
                    f"split {split!r} must have prompts whose answers are single "
                    f"tokens, got none of {len(_prompts_of(records))} "
                    f"({self._asked.reasons()}); use another model or more prompts"
                )
        self._has_texts = len(prompts) < len(corpus.everything())
        if not self._has_texts:
            logger.warning(
                "no text to retain is given: the prompts' other tokens are retained; "
                "name some with --retain_data"
            )
        self._rivals = self._padded_rivals()
        self.concept_metric = replace(self.concept_metric, chance=self._chance())
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)
        self._rows: dict[str, list[Row]] = {}
        self._prompts = {
            split: [r for r in _prompts_of(records) if r.text in self._asked.rows]
            for split, records in corpus.records.items()
        }

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Half prompts, half texts to retain; prompts alone if there are no texts."""
        n_prompts = len(self._prompts[split])
        n_texts = self.n_examples(split) - n_prompts
        n = max(1, round(CONCEPT_SHARE * size)) if n_texts else size
        chosen = draw(n_prompts, step, n, "mask", split, "prompt", seed)
        if n_texts:
            texts = draw(n_texts, step, size - n, "mask", split, "text", seed)
            chosen += [n_prompts + i for i in texts[: size - n]]
        return self._collated(split, chosen)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Prompts with their answers, and texts; with `limit`, the first prompts."""
        n = self.n_examples(split)
        if limit is not None:
            check_limit(limit, len(self._prompts[split]), split)
            n = limit
        return self._collated(split, draw(n, step, size, "finetune", split, seed))

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Texts to retain, drawn epoch by epoch.

        Raises:
            UserError: When the split has none.
        """
        texts = range(len(self._prompts[split]), self.n_examples(split))
        chosen = draw_from(texts, step, size, "without concept", split, seed)
        return self._collated(split, chosen)

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Every prompt and text once, prompts first."""
        for piece in self.pieces(split, range(self.n_examples(split)), size):
            yield self._collated(split, piece)

    def kinds(self, split: Split, examples: Sequence[int]) -> Sequence[tuple[str, ...]]:
        """Prompts and texts."""
        n_prompts = len(self._prompts[split])
        return [("prompt",) if i < n_prompts else ("text",) for i in examples]

    def n_examples(self, split: Split) -> int:
        """Number of prompts and texts of a split."""
        return len(self._rows_of(split))

    @cached_property
    def no_pairs(self) -> str | None:
        """Which prompts have no counterfactual; None if all have one."""
        asked = self._asked.rows
        prompts = [r for r in self._corpus.everything() if r.text in asked]
        without = [r for r in prompts if r.counterfactual is None]
        if not without:
            return None
        return f"these rows have no counterfactual prompt: {places(without)}"

    def counterfactual(self, batch: Batch) -> Batch:
        """The counterfactual prompts; texts are unchanged.

        Raises:
            UserError: When a prompt has none.
        """
        if self.no_pairs is not None:
            raise UserError(f"no paired counterfactual inputs: {self.no_pairs}")
        # a batch of texts only has no "corrupted_ids"
        paired = batch.get("corrupted_ids", batch["input_ids"])
        return {**batch, "input_ids": paired}

    def rivals(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position rival"] | None:
        """The rivals at the answers, repeated up to the largest number of a prompt.

        Repeated ones change no comparison of the answer with the best of them; where
        all logits are equal, the objective `uniform` is zero with them as without.
        None (all other tokens) at other positions, or when some prompt has no rival.
        In the objective `margin`, a sum over rivals, a repeated one counts repeatedly.
        """
        if "rival_ids" not in batch or not (where & batch["concept"]).any():
            return None
        return batch["rival_ids"][where.nonzero()[:, 0]]

    def counted(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        """Answers and retained tokens."""
        return batch["concept"] | batch["retain"]

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Prompts: hits and logit differences; other tokens: summed nats and counts."""
        where = self.counted(batch)
        logits = self.logits(model, batch).float()
        nll = counted_nll(logits, batch, where)
        is_prompt = batch["kind"] == PROMPT
        counts = self._answer_counts(logits[batch["concept"][where]], batch, is_prompt)
        has_texts = self._has_texts or self._reader.masked
        retained = ~is_prompt if has_texts else is_prompt
        for name, rows in (("retain", retained), ("template", is_prompt)):
            where = batch["retain"] & rows[:, None]
            counts[f"{name}_nats"] = (nll * where).sum(-1)
            counts[f"{name}_tokens"] = where.sum(-1).float()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracy, logit difference, top-1 and P(answer); NLL of the other tokens.

        The answer is right when its logit is above those of all rivals (of all other
        tokens where the data name none); the difference is that to the best of them.
        """
        scores = {
            name: share(counts[name], counts["prompts"])
            for name in ("accuracy", "logit_difference", "top1", "p_answer")
        }
        for name in ("retain", *["template"] * (not self._reader.masked)):
            nats, tokens = counts[f"{name}_nats"], counts[f"{name}_tokens"]
            scores[f"{name}_nll"] = share(nats, tokens)
        return scores

    def _answer_counts(
        self, at_answer: Float[Tensor, "prompt vocab"], batch: Batch, is_prompt: Tensor
    ) -> dict[str, Tensor]:
        """Scores of the answer of every prompt; zero for texts."""
        rows = is_prompt.nonzero()[:, 0]
        answer_id = batch["answer_id"][rows].unsqueeze(1)
        answer = at_answer.gather(1, answer_id).squeeze(1)
        best = at_answer.scatter(1, answer_id, -torch.inf).amax(1)
        top1 = (answer > best).float()
        if "rival_ids" in batch:
            named = batch["named"][rows].bool()
            of_rivals = at_answer.gather(1, batch["rival_ids"][rows]).amax(1)
            best = torch.where(named, of_rivals, best)
        answers = {
            "accuracy": (answer > best).float(),
            "logit_difference": answer - best,
            "top1": top1,
            "p_answer": (answer - at_answer.logsumexp(-1)).exp(),
        }
        counts = {"prompts": is_prompt.float()}
        for name, values in answers.items():
            counts[name] = values.new_zeros(len(is_prompt)).index_copy(0, rows, values)
        return counts

    def _padded_rivals(self) -> dict[str, Int[np.ndarray, "rival"]] | None:
        """The rivals of every prompt, repeated to one length; None if one has none."""
        rivals = {text: self._asked.rivals[text] for text in self._asked.rows}
        lengths = {len(ids) for ids in rivals.values()}
        if 0 in lengths:
            return None
        return {text: np.resize(ids, max(lengths)) for text, ids in rivals.items()}

    def _chance(self) -> float:
        """Expected accuracy of an answer drawn among the answer and its rivals."""
        shares = [
            1 / (1 + len(self._asked.rivals[text]))
            if row.numbers["named"]
            else 1 / len(self._tokenizer)
            for text, row in self._asked.rows.items()
        ]
        return sum(shares) / len(shares)

    def _rows_of(self, split: str) -> list[Row]:
        """Rows of a split, prompts first; texts are tokenised at their first use."""
        if split not in self._rows:
            prompts = self._prompts[split]
            self._rows[split] = [
                *(self._asked.rows[prompt.text] for prompt in prompts),
                *self._text_rows(split),
            ]
        return self._rows[split]

    def _text_rows(self, split: str) -> Iterator[Row]:
        """Texts to retain; for an encoder without any, the prompts with answers."""
        records = [r for r in self._corpus.records[split] if not r.answer]
        if not self._has_texts and self._reader.masked:
            records = self._prompts[split]
        texts = [self._reader.answered(r) if r.answer else r.text for r in records]
        n_more = 0 if self._reader.masked else 1
        coded = self._reader.tokens(texts, n_more)
        first_cluster = len(self._corpus.everything())  # after those of the prompts
        for i, (record, text, tokens) in enumerate(
            zip(records, texts, coded, strict=True)
        ):
            first = len(self._reader.around(record)[0]) if record.answer else 0
            spared = first, first + len(record.answer)
            row = text_row(text, tokens, self._reader, first_cluster + i, spared)
            if row is not None:
                yield row

    def _collated(self, split: Split, indices: Sequence[int]) -> Batch:
        rows = self._rows_of(split)
        batch = collate([rows[i] for i in indices], pad_id_of(self._tokenizer))
        if self._rivals is not None:
            prompts = self._prompts[split]
            nothing = np.zeros_like(next(iter(self._rivals.values())))
            rivals = [
                self._rivals[prompts[i].text] if i < len(prompts) else nothing
                for i in indices
            ]
            batch["rival_ids"] = torch.from_numpy(np.stack(rivals))
        return batch


def _prompts_of(records: Sequence[PromptRecord]) -> list[PromptRecord]:
    return [record for record in records if record.answer]
