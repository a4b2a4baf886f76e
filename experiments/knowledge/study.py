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
from torch import Tensor

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.effects import (
    Variant,
    probabilities,
    random_like,
)
from circuitcut.attribution.knowledge.gradients import (
    Attribution,
    activations,
    aggregated,
    integrated_gradients,
)
from circuitcut.attribution.knowledge.operations import ENHANCED
from circuitcut.attribution.knowledge.prompts import Prompt, asked_for
from circuitcut.attribution.knowledge.unit_sets import (
    Unit,
    Units,
    coarse,
    refined,
    refined_to_size,
    without_negatives,
)
from circuitcut.experiments.knowledge.facts import KnownFact
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
_AT_ONCE = 4
"""Prompts in one batch of attributions."""
_MOST_IN_POOL = 200
"""Facts from which those of other relations are drawn; more would fill the memory."""


@dataclass
class Study:
    """The facts of a run, and where their records are."""

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
    def widths(self) -> list[int]:
        """Number of neurons of every layer."""
        return [site.n_units for site in sites_of(self.model, ["neurons"])]

    @cached_property
    def found(self) -> Records:
        """The units of the prompts of all facts."""
        records = Records(self.folder / FOUND_FILE, FoundRecord)
        for number in shown(range(len(records), len(self.facts)), "attribution"):
            records.add(self._find(number))
        return records

    @cached_property
    def coarse_sets(self) -> list[list[Units]]:
        """The units of every prompt of every fact."""
        return [
            [frozenset(map(_unit, prompt["coarse"])) for prompt in record["prompts"]]
            for record in self.found
        ]

    @cached_property
    def refined_sets(self) -> list[Units]:
        """The units of every fact, after refinement and negatives."""
        config, share = self.config, self.config.share_of_prompts
        if config.refine == "original":
            share, sets = refined_to_size(self.coarse_sets, share)
        else:
            sets = [refined(of_fact, share) for of_fact in self.coarse_sets]
        self.share = share
        if config.negatives == "none":
            return sets
        return [
            without_negatives(units, self._negatives(number), config.negative_share)
            for number, units in enumerate(sets)
        ]

    def effects(self) -> Records:
        """What scaling the units of every fact does."""
        records = Records(self.folder / EFFECTS_FILE, EffectRecord)
        left = range(len(records), len(self.facts))
        if left:
            with evaluating(self.model):
                pool = self._pool()
                for number in shown(left, "effects"):
                    records.add(self._effect(number, pool))
        return records

    def _find(self, number: int) -> FoundRecord:
        known = self.facts[number]
        found = self._attributed(known.prompts)
        return {
            "fact": number,
            **known.words,  # type: ignore[typeddict-item]
            "prompts": [
                {
                    "text": asked.text,
                    "gold": self._decoded(prompt.answer),
                    "predicted": self._decoded(attribution.predicted),
                    "probability": attribution.probability,
                    "coarse": self._coarse(attribution.scores),
                }
                for asked, prompt, attribution in zip(
                    known.asked, known.prompts, found, strict=True
                )
            ],
        }

    def _attributed(self, prompts: Sequence[Prompt]) -> list[Attribution]:
        config = self.config
        found: list[Attribution] = []
        for first in range(0, len(prompts), _AT_ONCE):
            part = list(prompts[first : first + _AT_ONCE])
            if config.word == "predicted":
                best = activations(self.model, part)
                part = [
                    asked_for(prompt, attribution.predicted)
                    for prompt, attribution in zip(part, best, strict=True)
                ]
            if config.measure == "activations":
                found += activations(self.model, part)
            else:
                found += integrated_gradients(
                    self.model, part, grid=config.grid, n_steps=config.n_steps
                )
        return found

    def _coarse(self, scores: Tensor) -> list[tuple[int, int]]:
        """The units of a prompt, the highest score first."""
        of_units = aggregated(scores, self.config.aggregation)
        units = coarse(of_units, **self.config.rule)
        return sorted(units, key=lambda unit: (-float(of_units[unit]), unit))

    def _decoded(self, ids: Sequence[int]) -> str:
        tokenizer = self.experiment.loaded.tokenizer
        assert tokenizer is not None
        return tokenizer.decode(list(ids)).strip()

    def _negatives(self, number: int) -> list[Units]:
        """The units of drawn prompts about other facts."""
        of_relation = self.config.negatives == "relation"
        fact = self.facts[number].fact
        numbers = [
            i
            for i, other in enumerate(self.facts)
            if (other.fact.relation == fact.relation) == of_relation
            and other.fact.object != fact.object
        ]
        sets = [units for i in numbers for units in self.coarse_sets[i]]
        order = torch.randperm(len(sets), generator=self.rng(number, 1)).tolist()
        return [sets[i] for i in order[: self.config.n_negatives]]

    # -- effects ---------------------------------------------------------------------

    def _pool(self) -> BasePass | None:
        """The first prompt of the facts of the pool."""
        if not self.config.n_others:
            return None
        prompts = [self.facts[number].prompts[0] for number in self._in_pool]
        return BasePass.run(self.model, prompts)

    @cached_property
    def _in_pool(self) -> list[int]:
        """Numbers of evenly spaced facts."""
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
        first = self.found.entries[number]["prompts"][0]["coarse"]
        rng = self.rng(number, 2)
        return {
            "one_prompt": [frozenset(map(_unit, first[: len(units)]))],
            "random": [
                random_like(units, self.widths, rng, units)
                for _ in range(self.config.n_random)
            ],
            **{
                name: [frozenset(order[: len(units)])]
                for name, order in self.orders.items()
            },
        }

    def _others(self, number: int) -> list[int]:
        """Facts of other relations, drawn: their places in the pool."""
        relation = self.facts[number].fact.relation
        numbers = [
            place
            for place, other in enumerate(self._in_pool)
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


def _unit(pair: Sequence[int]) -> Unit:
    layer, number = pair
    return layer, number
