"""Induction: of random words that are written twice, the second half is a copy.

C. Olsson et al. (2022), "In-context Learning and Induction Heads",
https://arxiv.org/abs/2209.11895. The concept is the word to be copied, at the last
position; its rivals are the other words of the list. Retained are plain sentences, in
which nothing is copied.
"""

from typing import ClassVar

from circuitcut.data.behaviours.induction import generate_induction
from circuitcut.data.prompts.records import PromptsCorpus
from circuitcut.tasks.base import Head, Metric, TaskOptions
from circuitcut.tasks.behaviours.generated import check_no_data, with_retained
from circuitcut.tasks.prompts import PromptsTask
from circuitcut.tasks.settings.induction import DEFAULTS


class InductionTask(PromptsTask):
    """Lists of words, of which the second half copies the first.

    `accuracy`: the copied word beats the other words of the list, so that chance is one
    in their number.
    """

    name: ClassVar[str] = "induction"
    head: ClassVar[Head] = "causal_lm"
    concept_metric = Metric("accuracy", True, "fraction", 0.0, "induction accuracy")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> PromptsCorpus:
        """Generated lists; no two splits but `base` share a word."""
        check_no_data(cls.name, options)
        return with_retained(generate_induction(options.split_seed), options)
