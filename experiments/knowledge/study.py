"""Knowledge neurons of many facts, then what scaling them does, fact by fact.

Two files of records grow with the facts; a killed run goes on at the next fact. Of
equal facts, weights and flags every record is the same, whatever was done before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.effects import (
    Variant,
    probabilities,
    random_like,
)
from circuitcut.attribution.knowledge.operations import ENHANCED
from circuitcut.attribution.knowledge.unit_sets import (
    Unit,
    Units,
    refined,
    refined_to_size,
    without_negatives,
)
from circuitcut.experiments.knowledge.facts import KnownFact
from circuitcut.experiments.knowledge.finding import Finder, sets_of, unit_of
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.records import (
    EffectRecord,
    FoundRecord,
    Records,
)
from circuitcut.experiments.load import Experiment
from circuitcut.models.architectures import sites_of
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown

FOUND_FILE, EFFECTS_FILE = "found.jsonl", "effects.jsonl"
FACTORS = {"suppress": 0.0, "enhance": ENHANCED}
UNITS = ("refined", "one_prompt", "random")
"""Sets that are scaled: the fact's units; as many of its first prompt, the highest
scores; as many random ones of the same layers. Beside them stand as many of each of
`--mask`, those that it cuts first."""
_MOST_IN_POOL = 200
"""Facts from which those of other relations are drawn; more would fill the memory."""


@dataclass
class Study:
    """The facts of a run, and where their records are.

    With `--share i/n` the records are those of every n-th fact; what is drawn for a
    fact depends on all facts and on its number alone.
    """

    config: KnowledgeFlags
    experiment: Experiment
    facts: Sequence[KnownFact]
    folder: Path
    orders: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    """The neurons of masks, by the mask's method; the first are cut first."""
    share: float = field(init=False)
    """Of the prompts, that the rule of refinement ended with."""

    @property
    def model(self) -> Any:
        """The model, which stays as it is."""
        return self.experiment.loaded.model

    @cached_property
    def numbers(self) -> range:
        """Numbers of the facts that have records: all, or those of the share."""
        place, n_shares = self.config.place_of_share
        return range(place - 1, len(self.facts), n_shares)

    @cached_property
    def widths(self) -> list[int]:
        """Number of neurons of every layer."""
        return [site.n_units for site in sites_of(self.model, ["neurons"])]

    @cached_property
    def found(self) -> Records:
        """The units of the prompts of every fact."""
        records = Records(self.folder / FOUND_FILE, FoundRecord, self.numbers)
        for number in shown(records.left, "attribution"):
            records.add(self._find(number))
        return records

    @cached_property
    def coarse_sets(self) -> dict[int, list[Units]]:
        """The units of every prompt, by the number of its fact."""
        return {record["fact"]: sets_of(record["prompts"]) for record in self.found}

    @cached_property
    def refined_sets(self) -> dict[int, Units]:
        """The units of every fact by its number, after refinement and negatives."""
        config, share = self.config, self.config.share_of_prompts
        if config.refine == "original":
            share, sets = refined_to_size(list(self.coarse_sets.values()), share)
        else:
            sets = [refined(of_fact, share) for of_fact in self.coarse_sets.values()]
        self.share = share
        by_number = dict(zip(self.coarse_sets, sets, strict=True))
        if config.negatives == "none":
            return by_number
        return {
            number: without_negatives(
                units, self._negatives(number), config.negative_share
            )
            for number, units in by_number.items()
        }

    def effects(self) -> Records:
        """What scaling the units of every fact does."""
        records = Records(self.folder / EFFECTS_FILE, EffectRecord, self.numbers)
        if records.left and not self.waits_for_other_shares:
            with evaluating(self.model):
                pool = self._pool()
                for number in shown(records.left, "effects"):
                    records.add(self._effect(number, pool))
        return records

    @property
    def waits_for_other_shares(self) -> bool:
        """Whether this is a share, and a fact's units depend on those of others.

        Only the joined run then measures what the units do.
        """
        config = self.config
        alone = config.refine == "share" and config.negatives == "none"
        return len(self.numbers) < len(self.facts) and not alone

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.config, self.model, self.experiment.loaded.tokenizer)

    def _find(self, number: int) -> FoundRecord:
        known = self.facts[number]
        return {
            "fact": number,
            **known.words,  # type: ignore[typeddict-item]
            "prompts": self._finder.prompts_of(known),
        }

    def _negatives(self, number: int) -> list[Units]:
        """The units of drawn prompts about other facts."""
        of_relation = self.config.negatives == "relation"
        fact = self.facts[number].fact
        numbers = [
            i
            for i in self.numbers
            for other in (self.facts[i],)
            if (other.fact.relation == fact.relation) == of_relation
            and other.fact.parallel[2] != fact.parallel[2]
        ]
        sets = [units for i in numbers for units in self.coarse_sets[i]]
        order = torch.randperm(len(sets), generator=self.rng(number, 1)).tolist()
        return [sets[i] for i in order[: self.config.n_negatives]]

    # -- effects ---------------------------------------------------------------------

    def _pool(self) -> BasePass | None:
        """The first prompt of the facts of the pool."""
        if not self.config.n_others:
            return None
        prompts = [self.facts[number].prompts[0] for number in self.in_pool]
        return BasePass.run(self.model, prompts)

    @cached_property
    def in_pool(self) -> list[int]:
        """Numbers of evenly spaced facts of all."""
        step = -(-len(self.facts) // _MOST_IN_POOL)
        return list(range(0, len(self.facts), step))

    def _effect(self, number: int, pool: BasePass | None) -> EffectRecord:
        sets = self._sets(number)
        own = BasePass.run(self.model, self.facts[number].prompts)
        n_prompts = len(self.facts[number].prompts)
        effect: EffectRecord = {
            "fact": number,
            "own": _mean_probabilities(own, range(n_prompts), sets),
            "others": {},
        }
        others = self._others(number)
        if pool is not None and others:
            effect["others"] = _mean_probabilities(pool, others, sets)
        return effect

    def _sets(self, number: int) -> dict[str, list[Units]]:
        """The sets that are scaled; without units none of them is."""
        units = self.refined_sets[number]
        return {"refined": [units], **self.controls(number, units)}

    def controls(self, number: int, units: Units) -> dict[str, list[Units]]:
        """Sets of as many units as some of a fact's, to be compared with."""
        first = self.found.of(number)["prompts"][0]["coarse"]
        return {
            "one_prompt": [frozenset(map(unit_of, first[: len(units)]))],
            "random": self.random_sets(number, units),
            **{
                name: [frozenset(order[: len(units)])]
                for name, order in self.orders.items()
            },
        }

    def random_sets(self, number: int, units: Units | None = None) -> list[Units]:
        """As many other units of the same layers as some of a fact's, several times.

        Args:
            units: By default all units of the fact.
        """
        units = self.refined_sets[number] if units is None else units
        rng = self.rng(number, 2)
        return [
            random_like(units, self.widths, rng, units)
            for _ in range(self.config.n_random)
        ]

    def _others(self, number: int) -> list[int]:
        """Facts of other relations, drawn: their places in the pool."""
        relation = self.facts[number].fact.relation
        numbers = [
            place
            for place, other in enumerate(self.in_pool)
            if self.facts[other].fact.relation != relation
        ]
        order = torch.randperm(len(numbers), generator=self.rng(number, 3)).tolist()
        return sorted(numbers[i] for i in order[: self.config.n_others])

    def rng(self, number: int, what: int) -> torch.Generator:
        """Draws for a fact; `what`, from 0 to 3, keeps different draws apart."""
        seed = (self.config.seed * 1_000_003 + number) * 4 + what
        return torch.Generator().manual_seed(seed % 2**63)


def _mean_probabilities(
    base: BasePass, prompts: Sequence[int], sets: dict[str, list[Units]]
) -> dict[str, float]:
    """Mean probability of the answers before, and by the name of a set and operation.

    Args:
        prompts: Numbers of the prompts of `base`.
        sets: Sets of units by name; over several sets of a name the mean is taken.
    """
    names: list[str] = []
    variants: list[Variant] = []
    for prompt in prompts:
        names.append("before")
        variants.append(Variant(prompt, frozenset(), 1.0))
        for name, of_name in sets.items():
            for operation, factor in FACTORS.items():
                names += [f"{name} {operation}"] * len(of_name)
                variants += [Variant(prompt, units, factor) for units in of_name]
    values: dict[str, list[float]] = {}
    for name, p in zip(names, probabilities(base, variants).tolist(), strict=True):
        values.setdefault(name, []).append(p)
    return {name: fmean(ps) for name, ps in values.items()}
