"""The facts of a run that its model knows, with their prompts in tokens."""

from dataclasses import dataclass

from circuitcut.attribution.knowledge.prompts import Prompt, prompts_of
from circuitcut.data.facts.concept import evenly_drawn
from circuitcut.data.facts.records import Fact, FactsCorpus
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.load import Experiment
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import AskedPrompt, asked_facts
from circuitcut.tasks.facts.known import (
    KNOWN_SHARE,
    cached_right_prompts,
    shares_right,
)
from circuitcut.tasks.language_rows import pad_id_of, prefix_ids


@dataclass(frozen=True)
class KnownFact:
    """A fact that the model knows, as it is asked for it."""

    fact: Fact
    asked: tuple[AskedPrompt, ...]
    prompts: tuple[Prompt, ...]

    @property
    def words(self) -> dict[str, str]:
        """Subject, relation and object."""
        return {
            "subject": self.fact.subject,
            "relation": self.fact.relation,
            "object": self.fact.object,
        }


@dataclass(frozen=True)
class KnownFacts:
    """The facts of a run, and of how many they were drawn."""

    facts: tuple[KnownFact, ...]
    n_facts: int
    n_asked: int
    """With a prompt that the model can be asked."""
    n_known: int


def known_facts(config: KnowledgeFlags, experiment: Experiment) -> KnownFacts:
    """The known facts, as many of every relation as of the others.

    Raises:
        UserError: When the model knows none of them.
    """
    corpus, loaded = experiment.corpus, experiment.loaded
    assert isinstance(corpus, FactsCorpus)
    facts = corpus.concept
    if config.facts == "all":
        facts = (*facts, *corpus.others)
    tokenizer, masked = loaded.tokenizer, not loaded.is_decoder
    options = config.task_options("last" if loaded.is_decoder else "first")
    asked = asked_facts(
        facts,
        tokenizer,
        masked=masked,
        max_length=config.max_length,
        prefix=prefix_ids(tokenizer, options),
    )
    assert tokenizer is not None
    most = config.n_paraphrases
    by_fact = [prompts[:most] for prompts in asked.of_fact(len(facts))]
    prompts = [prompt for of_fact in by_fact for prompt in of_fact]
    right = cached_right_prompts(
        prompts,
        loaded.model,
        pad_id_of(tokenizer),
        "knowledge",
        loaded.weights_sha256,
        tokenizer.backend_tokenizer.to_str(),
        corpus.fingerprint(),
        repr((config.facts, most, config.max_length)),
        repr((options.prefix, options.bos, options.chat)),
    )
    shares = shares_right(prompts, right, len(facts))
    known = [
        fact for fact, share in zip(facts, shares, strict=True) if share >= KNOWN_SHARE
    ]
    if not known:
        raise UserError(
            f"{config.model_name} knows none of the {len(facts)} facts (their object "
            f"has rank 1 in half of the prompts of none; {sum(map(bool, by_fact))} can "
            "be asked); use another model, or other facts with --data or --concept"
        )
    by_key = {fact.key: of_fact for fact, of_fact in zip(facts, by_fact, strict=True)}
    drawn = evenly_drawn(known, config.most_facts, config.seed)
    return KnownFacts(
        tuple(
            KnownFact(
                fact,
                tuple(by_key[fact.key]),
                tuple(prompts_of(by_key[fact.key])),
            )
            for fact in drawn
        ),
        len(facts),
        sum(map(bool, by_fact)),
        len(known),
    )
