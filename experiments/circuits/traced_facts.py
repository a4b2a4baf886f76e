"""Known facts whose subjects are found in their prompts, for causal tracing."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from circuitcut.attribution.tracing import TracedPrompt
from circuitcut.data.facts.records import Fact, FactsCorpus
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import Experiment
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import AskedPrompt
from circuitcut.tasks.facts.task import FactsTask
from circuitcut.tasks.language_rows import Tokens, prefix_ids
from circuitcut.tasks.rows.prompts import Reader

NOT_KNOWN = "prompts whose object does not have rank 1"
NO_SUBJECT = "prompts that do not hold their subject"


@dataclass(frozen=True)
class TracedFact:
    """A known fact in one of its prompts."""

    fact: Fact
    text: str
    prompt: TracedPrompt


@dataclass(frozen=True)
class TracedFacts:
    """The facts that are traced, and how many were looked at for them."""

    facts: tuple[TracedFact, ...]
    n_asked: int
    left_out: dict[str, int]
    """Number of prompts by the reason why they are not traced."""


def traced_facts(
    experiment: Experiment,
    config: TaskConfig,
    *,
    which: Literal["all", "concept"],
    n: int,
) -> TracedFacts:
    """Prompts of known facts in an order drawn with the seed, at most `n`.

    Args:
        experiment: Its task has asked the model.
        which: Facts of the concept, or the other facts of the data as well.

    Raises:
        UserError: When no fact is known, or none has its subject in its prompt.
    """
    corpus, loaded, task = experiment.corpus, experiment.loaded, experiment.task
    assert isinstance(corpus, FactsCorpus)
    assert isinstance(task, FactsTask)
    masked = not loaded.is_decoder
    prefix = prefix_ids(loaded.tokenizer, config.task_options("last", masked_lm=masked))
    reader = Reader(loaded.tokenizer, masked, config.max_length, prefix)
    answers, of_reasons = task.answers(others=which == "all")
    left_out = Counter(of_reasons)
    random.Random(config.seed).shuffle(answers)
    found: list[TracedFact] = []
    n_asked = 0
    for fact, prompt, is_right in answers:
        if len(found) == n:
            break
        n_asked += 1
        subject = subject_tokens(fact, prompt, reader) if is_right else None
        if subject is None:
            left_out[NO_SUBJECT if is_right else NOT_KNOWN] += 1
            continue
        traced = TracedPrompt(
            prompt.whole_ids, subject, prompt.positions, prompt.answer_ids
        )
        found.append(TracedFact(fact, prompt.text, traced))
    if not found:
        why = "; ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        raise UserError(
            f"no fact of {corpus.name} can be traced: {why}; give facts that the model "
            "knows, in prompts that name their subject"
        )
    return TracedFacts(tuple(found), n_asked, dict(left_out))


def subject_tokens(
    fact: Fact, prompt: AskedPrompt, reader: Reader
) -> tuple[int, int] | None:
    """First token of the subject in a prompt and one past its last; None: not there."""
    start = prompt.text.find(fact.subject)
    if start < 0:
        return None
    (tokens,) = reader.tokens([prompt.text], n_more=1)
    inside = _tokens_between(tokens, start, start + len(fact.subject))
    if not inside:
        return None
    # a masked model has a mask token more for each further token of the object
    n_more = len(prompt.answer_ids) - 1 if prompt.masked else 0
    shift = n_more if inside[0] > prompt.position else 0
    return inside[0] + shift, inside[-1] + 1 + shift


def _tokens_between(tokens: Tokens, start: int, stop: int) -> Sequence[int]:
    return [
        number
        for number, ((first, last), special) in enumerate(
            zip(tokens.spans, tokens.special, strict=True)
        )
        if not special and first < stop and last > start
    ]
