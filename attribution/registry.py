"""Rankings without training, by name: the baselines of learned masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from circuitcut.attribution.abilities import ABILITIES, Ability, able
from circuitcut.attribution.acdc import acdc
from circuitcut.attribution.edge_integrated import eap_ig
from circuitcut.attribution.gradients import (
    gradient_concept_loss,
    gradient_margin,
    gradient_margin_over_retain,
)
from circuitcut.attribution.greedy import greedy_margin
from circuitcut.attribution.integrated import integrated_gradients_margin
from circuitcut.attribution.patching import patching
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
    ability: Ability

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
        reason = self.ability.cannot_rank(kinds)
        if reason is not None:
            raise UserError(
                f"this method {reason}; use one of {', '.join(able(kinds))}"
            )
        return self.rank(subject)


_RANKS: dict[str, Callable[[Subject], Scores]] = {
    "probeless": probeless,
    "gradient_concept_loss": gradient_concept_loss,
    "gradient_margin": gradient_margin,
    "gradient_margin_over_retain": gradient_margin_over_retain,
    # on edges the gradient of the gates is edge attribution patching
    "eap": gradient_margin,
    "eap_ig": eap_ig,
    "integrated_gradients_margin": integrated_gradients_margin,
    "greedy_margin": greedy_margin,
    "patching": patching,
    "acdc": acdc,
    "random": random_scores,
}
METHODS: dict[str, Method] = {
    name: Method(_RANKS[name], ability) for name, ability in ABILITIES.items()
}
