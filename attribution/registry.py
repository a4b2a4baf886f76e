"""Rankings without training, by name: the baselines every learned mask has to beat."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn

from circuitcut.attribution.edge_integrated import eap_ig
from circuitcut.attribution.gradients import (
    gradient_concept_loss,
    gradient_margin,
    gradient_margin_over_retain,
)
from circuitcut.attribution.greedy import greedy_margin
from circuitcut.attribution.integrated import integrated_gradients_margin
from circuitcut.attribution.probeless import probeless
from circuitcut.attribution.random_scores import random_scores
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.ablation import AblationValues
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Split, Task


@dataclass(frozen=True)
class Method:
    """A ranking, called with the task, the model and what is to be cut."""

    rank: Callable[[Subject], Scores]
    ranks_edges: bool = True
    ranks_others: bool = True
    """Neurons, heads, hidden units and weights."""

    def __call__(
        self,
        task: Task,
        model: nn.Module,
        sites: Sequence[Site],
        ablated: AblationValues,
        *,
        split: Split = "mask",
        n_batches: int = 32,
        size: int = 16,
        seed: int = 0,
        special_ids: Sequence[int] = (),
    ) -> Scores:
        """Responsibility of every unit for the concept.

        Args:
            ablated: What ablated units become. For counterfactual values only the kind
                is read: each batch is paired with its own.
            split: Where the batches come from, `n_batches` of `size` examples.
            seed: Of the batches and of whatever a method draws.
            special_ids: Positions with these `input_ids` are never cut.

        Returns:
            By site name (n_units,), float64 on the CPU. The higher, the more
            responsible and the earlier ablated: `FrozenMask.exactly_k` wants their
            negatives.

        Raises:
            UserError: When sites or batches are missing, no batch holds the concept, or
                the method cannot rank these units.
        """
        subject = Subject(
            task,
            model,
            tuple(sites),
            ablated,
            split,
            n_batches,
            size,
            seed,
            tuple(special_ids),
        )
        kinds = [site.kind for site in sites]
        told = self.cannot_rank(kinds)
        if told is not None:
            raise UserError(f"this method {told}; use one of {', '.join(able(kinds))}")
        return self.rank(subject)

    def cannot_rank(self, kinds: Collection[str]) -> str | None:
        """What it does instead of ranking units of these kinds; None where it can."""
        if not self.ranks_edges and "edges" in kinds:
            return "cannot rank edges"
        if not self.ranks_others and set(kinds) - {"edges"}:
            return "ranks edges alone"
        return None


def able(kinds: Collection[str]) -> list[str]:
    """Names of the methods that can rank units of all these kinds."""
    return [name for name, m in METHODS.items() if m.cannot_rank(kinds) is None]


METHODS: dict[str, Method] = {
    # it compares activations, and all edges of a writer carry the same one
    "probeless": Method(probeless, ranks_edges=False),
    "gradient_concept_loss": Method(gradient_concept_loss),
    "gradient_margin": Method(gradient_margin),
    "gradient_margin_over_retain": Method(gradient_margin_over_retain),
    # on edges the gradient of the gates is edge attribution patching
    "eap": Method(gradient_margin, ranks_others=False),
    "eap_ig": Method(eap_ig, ranks_others=False),
    "integrated_gradients_margin": Method(integrated_gradients_margin),
    "greedy_margin": Method(greedy_margin),
    "random": Method(random_scores),
}
