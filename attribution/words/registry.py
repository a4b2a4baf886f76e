"""Rankings of the hidden units of all levels over the words of a split, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.words.linear import linear_probe
from circuitcut.attribution.words.moments import Moments
from circuitcut.attribution.words.names import PENALTIES
from circuitcut.attribution.words.states import (
    SIZE,
    Words,
    WordSource,
    word_states,
)
from circuitcut.masks.ablation import zero_values
from circuitcut.models.sites import Site

GRADIENT_SIZE = SIZE // 2
"""Examples of one batch of a ranking by gradients."""


@dataclass(frozen=True)
class Ranked:
    """What is ranked: a model as it stands, on the words of a split."""

    source: WordSource
    model: nn.Module
    sites: tuple[Site, ...]
    seed: int = 0

    @cached_property
    def moments(self) -> Moments:
        """Of all words, from one pass."""
        return Moments.over(self.states("moments of the words"))

    def states(self, label: str | None = None) -> Iterator[tuple[Words, Tensor]]:
        """One pass over the words and their states."""
        return word_states(self.source, self.model, self.sites, label=label)


def _linear(penalty: str, ranked: Ranked) -> Tensor:
    passes = partial(ranked.states, f"linear probe, {penalty}")
    return linear_probe(passes, ranked.moments, penalty=penalty, seed=ranked.seed)


def _by_method(name: str, ranked: Ranked) -> Tensor:
    """A ranking of `attribution.registry`, over as many examples as the split has."""
    source = ranked.source
    n_batches = -(-source.task.n_examples(source.split) // GRADIENT_SIZE)
    scores = METHODS[name](
        source.task,
        ranked.model,
        ranked.sites,
        zero_values(ranked.sites),
        split=source.split,
        n_batches=n_batches,
        size=GRADIENT_SIZE,
        seed=ranked.seed,
        special_ids=source.special_ids,
    )
    return joined(scores, ranked.sites)


def joined(scores: dict[str, Tensor], sites: tuple[Site, ...]) -> Tensor:
    """Scores by site name as one vector, (unit,), in the order of the sites."""
    return torch.cat([scores[site.name].detach().double().cpu() for site in sites])


WORD_RANKINGS: dict[str, Callable[[Ranked], Tensor]] = {
    "probeless": lambda ranked: ranked.moments.probeless(),
    "probeless_labels": lambda ranked: ranked.moments.probeless_labels(),
    **{name: partial(_linear, penalty) for name, penalty in PENALTIES.items()},
    "gradient_margin": partial(_by_method, "gradient_margin"),
    "random": partial(_by_method, "random"),
}
"""Scores of all units, (unit,) float64: the higher, the earlier a unit is ablated."""
