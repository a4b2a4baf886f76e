"""The facts of a run that its model knows, with their prompts in tokens."""

from dataclasses import dataclass, field
from typing import Any

from circuitcut.attribution.knowledge.prompts import Prompt, prompts_of
from circuitcut.data.facts.concept import evenly_drawn
from circuitcut.data.facts.records import Fact, FactsCorpus, languages_of
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.load import Experiment
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import AskedPrompt
from circuitcut.tasks.facts.known import KNOWN_SHARE
from circuitcut.tasks.facts.task import FactsTask


@dataclass(frozen=True)
class KnownFact:
    """A fact that the model knows, as it is asked for it."""

    fact: Fact
    asked: tuple[AskedPrompt, ...]
    prompts: tuple[Prompt, ...]
    near: tuple[Prompt, ...] = ()
    """The data's prompts about other subjects of which the object is true."""

    @property
    def words(self) -> dict[str, str]:
        """Subject, relation and object, and the language if it has one."""
        language = self.fact.language
        return {
            "subject": self.fact.subject,
            "relation": self.fact.relation,
            "object": self.fact.object,
            **({"language": language} if language else {}),
        }


@dataclass(frozen=True)
class KnownFacts:
    """The facts of a run, and of how many they were drawn."""

    facts: tuple[KnownFact, ...]
    n_facts: int
    n_asked: int
    """With a prompt that the model can be asked."""
    n_known: int
    languages: list[dict[str, Any]] = field(default_factory=list)
    """Facts that can be asked, known ones and those of the run, by language."""


def known_facts(config: KnowledgeFlags, experiment: Experiment) -> KnownFacts:
    """The known facts, as many of every relation as of the others.

    Args:
        experiment: Its task has asked the model.

    Raises:
        UserError: When the model knows none of them.
    """
    task, corpus = experiment.task, experiment.corpus
    assert isinstance(task, FactsTask)
    assert isinstance(corpus, FactsCorpus)
    of_concept = {fact.key for fact in corpus.concept}
    split = None if config.split == "all" else config.split
    rows = [
        (fact, prompts, share)
        for fact, prompts, share in task.known_facts(split)
        if config.facts == "all" or fact.key in of_concept
    ]
    known = {fact.key: prompts for fact, prompts, share in rows if share >= KNOWN_SHARE}
    if not known:
        raise UserError(
            f"{config.model_name} knows none of the {len(rows)} facts: their object "
            "has rank 1 in less than half of the prompts; use another model, or other "
            "facts with --data or --concept"
        )
    facts = [fact for fact, _, _ in rows if fact.key in known]
    drawn = evenly_drawn(facts, config.most_facts, config.seed)
    near = task.neighbours()
    return KnownFacts(
        tuple(
            KnownFact(
                fact,
                tuple(known[fact.key]),
                tuple(prompts_of(known[fact.key])),
                tuple(prompts_of(near.get(fact.key, ()))),
            )
            for fact in drawn
        ),
        len(rows),
        sum(bool(prompts) for _, prompts, _ in rows),
        len(known),
        [
            {
                "language": name,
                "n_asked": sum(f.language == name for f, of, _ in rows if of),
                "n_known": sum(fact.language == name for fact in facts),
                "n_facts": sum(fact.language == name for fact in drawn),
            }
            for name in languages_of(fact for fact, _, _ in rows)
        ],
    )
