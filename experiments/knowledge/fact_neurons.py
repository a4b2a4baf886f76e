"""The refined neurons of one fact in every language, and how many languages share.

neurons = FactNeurons.load(["en", "fr"])  # the built-in model, trained once
units = neurons.of("Junomark")
print(units["en"] & units["fr"])
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from circuitcut.attribution.knowledge.unit_sets import (
    Units,
    overlap_of_pairs,
    refined,
)
from circuitcut.experiments.base_model import prepare
from circuitcut.experiments.knowledge.facts import KnownFact, known_facts
from circuitcut.experiments.knowledge.finding import Finder, sets_of
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.load import Experiment
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import shown, shown_names

MULTILINGUAL = "multilingual-encoder"
Key = tuple[str, str, str]
"""Subject, relation and object in the data's first language."""


@dataclass(frozen=True)
class FactNeurons:
    """The facts that a model knows, and the units of each; made by `load` or `of_run`.

    Units are found when they are asked for, and kept.
    """

    finder: Finder
    facts: tuple[KnownFact, ...]
    """Known ones alone, of every language those that the model knows in it."""
    n_units: int
    """MLP neurons of the model."""

    @classmethod
    def load(
        cls,
        languages: Sequence[str] = (),
        *,
        model: str = MULTILINGUAL,
        data: str | None = None,
        **flags: Any,
    ) -> "FactNeurons":
        """The known facts of a model in some languages; a built-in model is trained.

        Args:
            languages: Such as `["en", "fr"]`; none: those of the data.
            model: A built-in model, a local folder or a hub name.
            data: A file or folder of facts, such as that of BMLAMA-17; None: generated
                facts.
            flags: Further flags of `scripts/knowledge.py`, such as `concept="capital"`.

        Raises:
            UserError: When a flag or the data are wrong, or no fact is known.
        """
        config = KnowledgeFlags(model=model, data=data, language=[*languages], **flags)
        return cls.of_run(config, prepare(config))

    @classmethod
    def of_run(cls, config: KnowledgeFlags, experiment: Experiment) -> "FactNeurons":
        """Those of an experiment whose task has asked the model.

        Raises:
            UserError: When the model knows none of them, or a flag asks for another
                rule of refinement than a share of the fact's own prompts.
        """
        if config.refine != "share" or config.negatives != "none":
            raise UserError(
                "the units of one fact are refined by a share of its prompts; leave "
                f"refine and negatives out, got {config.refine!r} and "
                f"{config.negatives!r}"
            )
        loaded = experiment.loaded
        return cls(
            Finder(config, loaded.model, loaded.tokenizer),
            known_facts(config, experiment).facts,
            sum(site.n_units for site in sites_of(loaded.model, ["neurons"])),
        )

    @property
    def languages(self) -> list[str]:
        """Languages of the known facts, in the order of the data."""
        return list(dict.fromkeys(known.fact.language for known in self.facts))

    @cached_property
    def known_in_all(self) -> list[Key]:
        """The facts that the model knows in all of these languages."""
        n = len(self.languages)
        return [key for key, of in self._by_key.items() if len(of) == n]

    def of(self, fact: str | Key) -> dict[str, Units]:
        """The refined units of a fact in every language in which the model knows it.

        Args:
            fact: Its subject in any language, or one of `known_in_all`.

        Returns:
            By language, sets of (layer, number); a fact without a language has "".

        Raises:
            UserError: When no known fact, or several, have this subject.
        """
        key = self._key_of(fact)
        return {language: self._units(key, language) for language in self._by_key[key]}

    def overlap(self, facts: Iterable[str | Key] | None = None) -> list[dict[str, Any]]:
        """How many units of a fact two languages share, beside two controls.

        Args:
            facts: Subjects or keys; None: all of `known_in_all`.

        Returns:
            One row for every two languages, and per row: mean Jaccard index of the same
            fact (`same_fact`), of two facts of one relation (`other_fact`), and of
            random sets of the first ones' sizes (`random`, exact); `n_facts`.
        """
        asked = self.known_in_all if facts is None else facts
        keys = [self._key_of(fact) for fact in asked]
        return [
            self._overlap(keys, one, other)
            for one, other in combinations(self.languages, 2)
        ]

    def _overlap(self, keys: Sequence[Key], one: str, other: str) -> dict[str, Any]:
        units = {
            (key, name): self._units(key, name)
            for key in keys
            for name in (one, other)
            if name in self._by_key[key]
        }
        same = [
            (units[key, one], units[key, other])
            for key in keys
            if (key, one) in units and (key, other) in units
        ]
        different = [
            (units[first, one], units[second, other])
            for first in keys
            for second in keys
            if first != second and first[1] == second[1]
            if (first, one) in units and (second, other) in units
        ]
        of_same = overlap_of_pairs(same, n_units=self.n_units)
        of_different = overlap_of_pairs(different, n_units=self.n_units)
        return {
            "languages": (one, other),
            "n_facts": of_same["n_pairs"],
            "same_fact": of_same["jaccard"],
            "other_fact": of_different["jaccard"],
            "random": of_same["random"],
        }

    @cached_property
    def _by_key(self) -> dict[Key, dict[str, KnownFact]]:
        found: dict[Key, dict[str, KnownFact]] = {}
        for known in self.facts:
            found.setdefault(known.fact.parallel, {})[known.fact.language] = known
        return found

    @cached_property
    def _found(self) -> dict[tuple[Key, str], Units]:
        return {}

    def _units(self, key: Key, language: str) -> Units:
        if (key, language) not in self._found:
            sets = sets_of(self.finder.prompts_of(self._by_key[key][language]))
            share = self.finder.config.share_of_prompts
            self._found[key, language] = refined(sets, share)
        return self._found[key, language]

    def _key_of(self, fact: str | Key) -> Key:
        if isinstance(fact, tuple) and fact in self._by_key:
            return fact
        keys = {k.fact.parallel for k in self.facts if k.fact.subject == fact}
        keys |= {key for key in self._by_key if key[0] == fact}
        if len(keys) != 1:
            known = shown_names([key[0] for key in self._by_key])
            raise UserError(
                f"argument fact must be the subject of one known fact ({known}) or one "
                f"of known_in_all, got {shown(fact)}"
                + (f", the subject of {len(keys)} facts" if keys else "")
            )
        return keys.pop()
