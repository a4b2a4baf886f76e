"""How active the units of facts are on prompts with the fact and without it.

D. Dai et al. (2022), "Knowledge Neurons in Pretrained Transformers",
https://arxiv.org/abs/2104.08696, section 5.2. Departures: prompts take the place of
sentences from the web, so that the tail is asked for and not written; prompts of the
same relation about other subjects are a fourth kind.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.attribution.knowledge.gradients import activations, aggregated
from circuitcut.attribution.knowledge.prompts import Prompt, prompts_of
from circuitcut.attribution.knowledge.unit_sets import Unit, most_common
from circuitcut.experiments.knowledge.facts import KnownFact
from circuitcut.experiments.knowledge.records import ActivityRecord, Records
from circuitcut.experiments.knowledge.study import Study
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.facts.task import FactsTask

ACTIVITY_FILE = "activity.jsonl"
N_UNITS, N_PROMPTS = 10, 5
"""Units with examples of prompts, and examples of each."""
_MOST_PROMPTS = 10
"""Prompts of each kind about other subjects, for one fact."""
_AT_ONCE = 16


@dataclass
class Activity:
    """Activations of a study's units; its pool of prompts is that of the effects."""

    study: Study

    def records(self) -> Records:
        """Mean activations of the units of every fact."""
        study = self.study
        path = study.folder / ACTIVITY_FILE
        records = Records(path, ActivityRecord, study.numbers)
        if not study.waits_for_other_shares:
            for number in shown(records.left, "activations"):
                records.add(self._record(number))
        return records

    def triggers(self) -> list[dict[str, Any]]:
        """Prompts of the pool on which the most common units are most active."""
        study, found = self.study, []
        sets = list(study.refined_sets.values())
        for unit in most_common(sets, N_UNITS):
            values = self._pool[:, unit[0], unit[1]]
            order = values.argsort(descending=True, stable=True)[:N_PROMPTS].tolist()
            found.append(
                {
                    "unit": list(unit),
                    "n_facts": sum(unit in units for units in sets),
                    "median": float(values.median()),
                    "prompts": [
                        {
                            "text": study.facts[study.in_pool[i]].asked[0].text,
                            "object": study.facts[study.in_pool[i]].fact.object,
                            "activation": float(values[i]),
                        }
                        for i in order
                    ],
                }
            )
        return found

    @cached_property
    def _pool(self) -> Float[Tensor, "prompt layer unit"]:
        study = self.study
        return self._active([study.facts[i].prompts[0] for i in study.in_pool])

    def _active(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer unit"]:
        """Activations where the object is predicted, means over its tokens."""
        with evaluating(self.study.model):
            parts = [
                torch.stack([aggregated(found.scores, "mean") for found in part])
                for first in range(0, len(prompts), _AT_ONCE)
                for part in (
                    activations(self.study.model, prompts[first : first + _AT_ONCE]),
                )
            ]
        return torch.cat(parts).float()

    def _record(self, number: int) -> ActivityRecord:
        study = self.study
        known, units = study.facts[number], study.refined_sets[number]
        record: ActivityRecord = {"fact": number, "refined": {}, "random": {}}
        if not units:
            return record
        own = self._active(known.prompts)
        random = study.random_sets(number)
        for kind, active in {
            "fact": own,
            "head": self._of_head(known),
            "relation": self._of_others(known, same_relation=True),
            "other": self._of_others(known, same_relation=False),
        }.items():
            if active is not None and len(active):
                record["refined"][kind] = _mean(active, units)
                record["random"][kind] = fmean(_mean(active, of) for of in random)
        return record

    def _of_head(self, known: KnownFact) -> Tensor | None:
        """The subject alone, which asks for nothing."""
        task = self.study.experiment.task
        assert isinstance(task, FactsTask)
        alone = replace(known.fact, prompts=(known.fact.subject,))
        asked = task.ask([alone]).prompts
        return self._active(prompts_of(asked)) if asked else None

    def _of_others(self, known: KnownFact, *, same_relation: bool) -> Tensor:
        """Prompts of the pool with another object, evenly spaced."""
        study, fact = self.study, known.fact
        places = [
            place
            for place, number in enumerate(study.in_pool)
            for other in (study.facts[number].fact,)
            if (other.relation == fact.relation) == same_relation
            and other.parallel[2] != fact.parallel[2]
        ]
        return self._pool[places[:: max(1, -(-len(places) // _MOST_PROMPTS))]]


def _mean(active: Float[Tensor, "prompt layer unit"], units: Collection[Unit]) -> float:
    layers, numbers = zip(*sorted(units), strict=True)
    return float(active[:, list(layers), list(numbers)].double().mean())
