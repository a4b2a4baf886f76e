"""The rankings without training, by name: which units each can rank."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Ability:
    """The kinds of unit that a method ranks."""

    ranks_edges: bool = True
    ranks_modules: bool = True
    """Whether it ranks neurons, heads, hidden units and weights."""
    runs_each_unit: bool = False
    """Whether it runs the model for every unit: asked for by name, not by `all`."""

    def cannot_rank(self, kinds: Collection[str]) -> str | None:
        """The reason why it cannot rank units of these kinds; None if it can."""
        if not self.ranks_edges and "edges" in kinds:
            return "cannot rank edges"
        if not self.ranks_modules and set(kinds) - {"edges"}:
            return "ranks edges alone"
        return None


ABILITIES: dict[str, Ability] = {
    # it compares activations, and all edges of a writer have the same activation
    "probeless": Ability(ranks_edges=False),
    "gradient_concept_loss": Ability(),
    "gradient_margin": Ability(),
    "gradient_margin_over_retain": Ability(),
    "eap": Ability(ranks_modules=False),
    "eap_ig": Ability(ranks_modules=False),
    "integrated_gradients_margin": Ability(),
    "greedy_margin": Ability(),
    "patching": Ability(runs_each_unit=True),
    "acdc": Ability(ranks_modules=False, runs_each_unit=True),
    "random": Ability(),
}
"""The methods of `registry.METHODS`; known before torch is imported."""


def able(kinds: Collection[str]) -> list[str]:
    """Names of the methods that can rank units of all these kinds."""
    return [name for name, a in ABILITIES.items() if a.cannot_rank(kinds) is None]
