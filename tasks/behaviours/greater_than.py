"""Spans of years: `... from the year 1732 to the year 17` goes on with a year above 32.

M. Hanna, O. Liu and A. Variengien (2023), "How does GPT-2 compute greater-than?",
https://arxiv.org/abs/2305.00586. The concept is the comparison, at the last position:
a right year against a wrong one, both drawn. Retained are plain sentences and the other
words of the prompts. Departures: a year is written as the tokenizer needs it (see
`data/behaviours/years.py`), and the published score, a difference of probabilities,
stands beside the accuracy of the comparison.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcut.data.behaviours.years import (
    FORMS,
    Form,
    YearsCorpus,
    YearSpan,
    ends,
    generate_years,
    written,
)
from circuitcut.data.prompts.records import PromptRecord
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Head, Metric, Split, TaskOptions
from circuitcut.tasks.behaviours.generated import check_no_data, with_retained
from circuitcut.tasks.language_rows import prefix_ids, share
from circuitcut.tasks.prompts import PromptsTask
from circuitcut.tasks.rows.prompts import Reader, answers_of
from circuitcut.tasks.settings.greater_than import DEFAULTS

NO_TOKEN = -1


class GreaterThanTask(PromptsTask):
    """The comparison of two years, of which the second is predicted.

    Batches hold `threshold` (batch,): what is asked for, a year within its century or
    its last digit, is right above it. `accuracy` compares one right year with one wrong
    year (chance 1/2); `probability_difference` is P(all right years) - P(all wrong
    ones), `cutoff_sharpness` P(threshold + 1) - P(threshold - 1), both as published.

    Raises:
        UserError: When the tokenizer writes years in none of the known ways.
    """

    name: ClassVar[str] = "greater_than"
    head: ClassVar[Head] = "causal_lm"
    concept_metric = Metric(
        "probability_difference", True, "probability", 0.0, "P(later) - P(earlier)"
    )
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> Any:
        """Generated spans of years."""
        check_no_data(cls.name, options)
        return generate_years(options.split_seed)

    def __init__(self, corpus: YearsCorpus, tokenizer: Any, options: TaskOptions):
        prefix = prefix_ids(tokenizer, options)
        reader = Reader(tokenizer, False, options.max_length, prefix)
        spans = [span for of in corpus.spans.values() for span in of]
        form, self._end_ids = _form_of(spans, reader)
        self._thresholds = {span.prompt(form): span.threshold(form) for span in spans}
        super().__init__(
            with_retained(corpus.in_form(form), options), tokenizer, options
        )

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """The scores of prompts, and the two published ones."""
        own = ("probability_difference", "cutoff_sharpness")
        return super().summarise(counts) | {
            name: share(counts[name], counts["prompts"]) for name in own
        }

    def _answer_counts(
        self, at_answer: Float[Tensor, "prompt vocab"], batch: Batch, is_prompt: Tensor
    ) -> dict[str, Tensor]:
        counts = super()._answer_counts(at_answer, batch, is_prompt)
        rows = is_prompt.nonzero()[:, 0]
        ids = torch.from_numpy(self._end_ids).to(at_answer.device)
        p = at_answer.softmax(-1)[:, ids.clamp(min=0)] * (ids != NO_TOKEN)
        threshold = batch["threshold"][rows].unsqueeze(1)  # p is (prompt, end)
        end = torch.arange(len(ids), device=p.device)
        sign = torch.where(end > threshold, 1.0, -1.0)
        beside = (end == threshold + 1).float() - (end == threshold - 1).float()
        for name, weights in (
            ("probability_difference", sign),
            ("cutoff_sharpness", beside),
        ):
            values = (p * weights).sum(1)
            counts[name] = values.new_zeros(len(is_prompt)).index_copy(0, rows, values)
        return counts

    def _chance(self) -> float:
        """Difference of the probabilities of right and wrong years, were all equal."""
        return 0.0

    def _collated(self, split: Split, indices: Sequence[int]) -> Batch:
        batch = super()._collated(split, indices)
        prompts = self._prompts[split]
        thresholds = [
            self._thresholds[prompts[i].text] if i < len(prompts) else 0
            for i in indices
        ]
        batch["threshold"] = torch.tensor(thresholds)
        return batch


def _form_of(
    spans: Sequence[YearSpan], reader: Reader
) -> tuple[Form, Int[np.ndarray, "end"]]:
    """The first form whose ends are one token each, and their tokens.

    An end counts if it is one token in some century: GPT-2 has tokens of whole years,
    whose prompts are left out. Of single digits all are needed, of years all but 00 and
    01, which no word-level tokenizer has seen.

    Raises:
        UserError: When there is none.
    """
    of_century = {span.century: span for span in spans}
    for form in FORMS:
        found: dict[int, set[int]] = {}
        records = [
            PromptRecord(span.prompt(form), written(end, form), form != "apart")
            for span in of_century.values()
            for end in ends(form)
        ]
        numbers = [*ends(form)] * len(of_century)
        for end, placed in zip(numbers, answers_of(records, reader), strict=True):
            if not isinstance(placed, str):
                found.setdefault(end, set()).add(placed[2])
        needed = ends(form) if form == "last_digit" else ends(form)[2:]
        tokens = [token for of in found.values() for token in of]
        if found.keys() >= {*needed} and len({*tokens}) == len(tokens) == len(found):
            ids = [min(found.get(end, {NO_TOKEN})) for end in ends(form)]
            return form, np.array(ids)
    raise UserError(
        "task greater_than needs a tokenizer that writes the last two digits of a "
        "year, or each digit, as one token, got another; use another model"
    )
