"""Rankings without training, by name: the baselines of learned masks."""

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
    """A ranking method; call it with the task, the model and the sites."""

    rank: Callable[[Subject], Scores]
    ranks_edges: bool = True
    ranks_modules: bool = True
    """Whether it ranks neurons, heads, hidden units and weights."""

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
        """Score of every unit for the concept.

        Args:
            ablated: Ablation values. If they are counterfactual, only the kind is used:
                the values of each batch are recorded on its paired inputs.
            split: Split of the `n_batches` batches with `size` examples each.
            seed: Seed of the batches and of random numbers of the method.
            special_ids: No unit is ablated at positions with these `input_ids`.

        Returns:
            (n_units,) by site name, float64 on the CPU. A unit with a higher score is
            more important for the concept and is ablated earlier; give
            `FrozenMask.exactly_k` the negative scores.

        Raises:
            UserError: When there are no sites or no batches, no batch has the concept,
                or the method cannot rank these units.
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
        reason = self.cannot_rank(kinds)
        if reason is not None:
            raise UserError(
                f"this method {reason}; use one of {', '.join(able(kinds))}"
            )
        return self.rank(subject)

    def cannot_rank(self, kinds: Collection[str]) -> str | None:
        """The reason why it cannot rank units of these kinds; None if it can."""
        if not self.ranks_edges and "edges" in kinds:
            return "cannot rank edges"
        if not self.ranks_modules and set(kinds) - {"edges"}:
            return "ranks edges alone"
        return None


def able(kinds: Collection[str]) -> list[str]:
    """Names of the methods that can rank units of all these kinds."""
    return [name for name, m in METHODS.items() if m.cannot_rank(kinds) is None]


METHODS: dict[str, Method] = {
    # it compares activations, and all edges of a writer have the same activation
    "probeless": Method(probeless, ranks_edges=False),
    "gradient_concept_loss": Method(gradient_concept_loss),
    "gradient_margin": Method(gradient_margin),
    "gradient_margin_over_retain": Method(gradient_margin_over_retain),
    # on edges the gradient of the gates is edge attribution patching
    "eap": Method(gradient_margin, ranks_modules=False),
    "eap_ig": Method(eap_ig, ranks_modules=False),
    "integrated_gradients_margin": Method(integrated_gradients_margin),
    "greedy_margin": Method(greedy_margin),
    "random": Method(random_scores),
}
