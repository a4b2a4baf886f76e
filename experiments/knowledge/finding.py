"""The units of one fact's prompts by the flags of a run, and those that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuitcut.attribution.knowledge.gradients import (
    Attribution,
    activations,
    aggregated,
    integrated_gradients,
)
from circuitcut.attribution.knowledge.prompts import Prompt, asked_for
from circuitcut.attribution.knowledge.unit_sets import Unit, Units, coarse
from circuitcut.experiments.knowledge.facts import KnownFact
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.records import PromptRecord

_AT_ONCE = 4
"""Prompts in one batch of attributions."""


@dataclass(frozen=True)
class Finder:
    """How the units of prompts are found.

    Args:
        config: Measure, grid, word, aggregation and the rule of coarse sets.
        model: A masked or causal language model; it stays as it is.
        tokenizer: Its tokenizer, for the words of the records.
    """

    config: KnowledgeFlags
    model: Any
    tokenizer: Any

    def prompts_of(self, known: KnownFact) -> list[PromptRecord]:
        """A record of every prompt of a fact, with its units."""
        found = self._attributed(known.prompts)
        return [
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
        ]

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

    def _coarse(self, scores: Tensor) -> list[Unit]:
        """The units of a prompt, the highest score first."""
        of_units = aggregated(scores, self.config.aggregation)
        units = coarse(of_units, **self.config.rule)
        return sorted(units, key=lambda unit: (-float(of_units[unit]), unit))

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids)).strip()


def sets_of(prompts: Sequence[PromptRecord]) -> list[Units]:
    """The units of every prompt as a set."""
    return [frozenset(map(unit_of, prompt["coarse"])) for prompt in prompts]


def unit_of(pair: Sequence[int]) -> Unit:
    """Layer and number of a unit that was read from JSON."""
    layer, number = pair
    return layer, number
