"""Two subjects, two objects: whose capital, whose sport?

Every prompt is paired with the same prompt about another subject of its split, which
has as many tokens and another object. That object is the only rival, so that chance is
1/2, and the paired prompt is the counterfactual input.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from circuitcut.data.behaviours.subjects import built_in_facts
from circuitcut.data.facts.concept import chosen_facts
from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.records import distinct
from circuitcut.data.ioi.generated import plain_sentences
from circuitcut.data.prompts.records import (
    PromptRecord,
    PromptsCorpus,
    with_further_texts,
)
from circuitcut.data.prompts.splits import split_prompts
from circuitcut.data.text.records import TextRecord
from circuitcut.data.text.splits import split_retained
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Metric, TaskOptions
from circuitcut.tasks.behaviours.generated import with_retained
from circuitcut.tasks.language_rows import prefix_ids
from circuitcut.tasks.prompts import PromptsTask
from circuitcut.tasks.rows.prompts import Reader, answers_of
from circuitcut.tasks.settings import capital_of, sports

N_TEXTS = 700
"""Plain sentences to retain beside the built-in facts."""
logger = logging.getLogger(__name__)


class TwoWayTask(PromptsTask):
    """Prompts about facts of one relation, each with one wrong object.

    Prompts without a partner, another subject of their split with as many tokens and
    another object of one token, are left out, which is logged.

    Raises:
        UserError: When a split is left without prompts.
    """

    @classmethod
    def read(cls, options: TaskOptions) -> PromptsCorpus:
        """Built-in facts, or those of one relation of a file (docs/howto/facts.md).

        No two splits share a subject; `base` has all prompts.
        """
        texts: list[str] = []
        if options.data is None:
            facts = built_in_facts(cls.name)
            rng = random.Random(f"{cls.name} {options.split_seed}")
            texts = plain_sentences(rng, N_TEXTS)
        else:
            facts, texts = read_facts(
                options.data,
                options.data_format,
                options.hub_config,
                options.hub_revision,
            )
        chosen, _, _ = chosen_facts(distinct(facts), options.concept)
        prompts = [fact.record(text) for fact in chosen for text in fact.prompts]
        corpus = split_prompts(prompts, seed=options.split_seed)
        # what is asked about is a subject, and no other split has it
        corpus = PromptsCorpus(
            {
                split: tuple(replace(record, unseen=True) for record in records)
                for split, records in corpus.records.items()
            }
        )
        if texts:
            records = [TextRecord(text, "wiki") for text in texts]
            by_split = split_retained(records, seed=options.split_seed)
            if options.data is None:  # the built-in model needs every word
                by_split["base"] = records
            corpus = with_further_texts(corpus, by_split)
        return with_retained(corpus, options)

    def __init__(self, corpus: PromptsCorpus, tokenizer: Any, options: TaskOptions):
        reader = Reader(
            tokenizer,
            options.masked_lm,
            options.max_length,
            prefix_ids(tokenizer, options),
        )
        super().__init__(paired(corpus, reader), tokenizer, options)


class CapitalOfTask(TwoWayTask):
    """The capital of a country."""

    name: ClassVar[str] = "capital_of"
    concept_metric = Metric("accuracy", True, "fraction", 0.5, "accuracy on capitals")
    defaults = capital_of.DEFAULTS


class SportsTask(TwoWayTask):
    """The sport of an athlete."""

    name: ClassVar[str] = "sports"
    concept_metric = Metric("accuracy", True, "fraction", 0.5, "accuracy on sports")
    defaults = sports.DEFAULTS


def paired(corpus: PromptsCorpus, reader: Reader) -> PromptsCorpus:
    """Every prompt with a partner of its split: its rival and its counterfactual.

    The partner asks the same of another subject, in as many tokens, with the mask at
    the same one, and has an object of another token. Which one is drawn with a seed
    made from the prompt. Prompts without one are left out.

    Raises:
        UserError: When a split has none left.
    """
    found: dict[str, PromptRecord] = {}
    for split, records in corpus.records.items():
        if split == "base":  # has the prompts of all others
            continue
        prompts = [record for record in records if record.answer]
        pairs = _partners(prompts, reader)
        if prompts and not pairs:
            raise UserError(
                f"split {split!r} must have prompts with a partner (another subject in "
                "as many tokens, another object of one token), got none of "
                f"{len(prompts)}; give more facts, or use another model"
            )
        found |= pairs
    n = sum(bool(record.answer) for record in corpus.records["base"])
    if len(found) < n:
        logger.warning("%d of %d prompts have no partner", n - len(found), n)
    return PromptsCorpus(
        {
            split: tuple(
                found.get(record.text, record)
                for record in records
                if not record.answer or record.text in found
            )
            for split, records in corpus.records.items()
        }
    )


def _partners(
    prompts: Sequence[PromptRecord], reader: Reader
) -> dict[str, PromptRecord]:
    """The prompts of a split that have a partner, by their text."""
    alike: dict[tuple[str, int, int], list[tuple[PromptRecord, int]]] = {}
    for record, placed in zip(prompts, answers_of(prompts, reader), strict=True):
        if isinstance(placed, str):
            continue
        question, position, answer = placed
        wording = record.text.replace(record.group, "{}")
        key = wording, len(question.ids), position
        alike.setdefault(key, []).append((record, answer))
    found: dict[str, PromptRecord] = {}
    for group in alike.values():
        for record, answer in group:
            others = [other for other, token in group if token != answer]
            if others:
                other = random.Random(record.text).choice(others)
                found[record.text] = replace(
                    record, rivals=(other.answer,), counterfactual=other.text
                )
    return found
