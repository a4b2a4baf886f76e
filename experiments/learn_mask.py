"""A mask on anything: your own model and loss, without a task.

sites = sites_of(model, ["neurons", "heads"])
learned = learn_mask(model, sites, loss, MaskSettings(n_steps=200))
mask = learned.freeze(n_ablated=24)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.experiments.gate_optimisation import (
    PROGRESS_ALONE,
    GateWatch,
    optimise_gates,
)
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate_settings import in_units
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES
from circuitcut.models.sites import Site
from circuitcut.models.weights_hash import weights_hash, weights_sha256
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating, weights_frozen
from circuitcut.storage.provenance import code_version
from circuitcut.training.fit_arguments import NO_CHECKPOINTS, Checkpoints

Loss = Callable[[nn.Module, int], tuple[Tensor, Tensor]]
"""(model under gates, step) -> (concept loss, retain loss), scalars in nats.

Both are minimised: in `break` the concept loss is low when the concept is gone, in
`isolate` when it is still there."""


@dataclass(frozen=True)
class LearnedMask:
    """Trained gates, which are not yet a finished mask."""

    gates: MaskSet
    ablated: AblationValues
    settings: MaskSettings
    special_ids: tuple[int, ...]
    provenance: Mapping[str, Any]

    @property
    def ranking(self) -> dict[str, Tensor]:
        """Scores by site name, (n_units,) each; the lowest are ablated first."""
        return self.gates.split(self.gates.ranking().detach().cpu())

    def freeze(self, n_ablated: int | None = None) -> FrozenMask:
        """The finished mask.

        Args:
            n_ablated: Ablate exactly so many units, the lowest of the ranking; None:
                the number that a Lagrangian was given, else those whose gate is below
                .5.

        Raises:
            UserError: When the gate has no threshold and no number is given, or more
                units are asked for than there are.
        """
        extra: dict[str, Any] = {
            "special_ids": self.special_ids,
            "provenance": self.provenance,
        }
        if n_ablated is None:
            n_ablated = self.settings.n_asked(self.gates.n_units)
        if n_ablated is not None:
            return FrozenMask.exactly_k(
                self.ranking,
                self.gates.sites,
                self.ablated,
                n_ablated=n_ablated,
                **extra,
            )
        if not GATES[self.settings.gate].has_threshold(self.settings):
            raise UserError(
                f"gate {self.settings.gate} ranks units and has no threshold: give "
                "n_ablated, the number of units to ablate"
            )
        return FrozenMask.from_threshold(self.gates, self.ablated, **extra)


def learn_mask(
    model: nn.Module,
    sites: Sequence[Site],
    loss: Loss,
    settings: MaskSettings | None = None,
    *,
    ablated: AblationValues | Callable[[int], AblationValues] | None = None,
    special_ids: Sequence[int] = (),
    superset: FrozenMask | None = None,
    start: Mapping[str, Tensor] | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    watch: GateWatch = PROGRESS_ALONE,
) -> LearnedMask:
    """Train gates on the units of `model` by a loss of your own.

    A step draws a sample of all gates, calls `loss(model, step)` with the model cut by
    it, and minimises concept_weight * concept + retain_weight * retain + the price of
    the units. The weights get no gradient; afterwards the model is as it was. The same
    seed gives the same bits, and a resumed training those of an uninterrupted one, if
    `loss` is a function of the model and the step.

    Args:
        sites: Where it can be cut: `sites_of(model, ["neurons", "heads"])` for the
            families of the table, `module_site(model, path)` for any other network.
        loss: Of the gated model at a step.
        settings: The range of k is made to fit the number of units. `batch_size`,
            objectives and `ablation` are `loss`'s and `ablated`'s own business. The
            gate clamped needs a price: `penalty="price"`.
        ablated: What replaces an ablated activation; default zero. A function of the
            step gives the values of each batch (counterfactuals); the finished mask
            then takes its values when it is applied.
        special_ids: Positions whose `input_ids` are among these are never cut.
        superset: Only the units that this mask ablates get a gate.
        start: A ranking by site name (the highest are kept) that the scores start from.
        checkpoints: Where the state is saved, and whether to continue from there.
        watch: Callbacks of the training, and its progress bar.

    Raises:
        UserError: When a setting or site does not fit, `loss` returns anything but two
            scalars, or a loss is not finite: the step is not taken, and the last
            checkpoint stays.
    """
    n_units = sum(site.n_units for site in sites)
    settings = in_units(settings or MaskSettings(), n_units)
    values = ablated if ablated is not None else zero_values(sites)

    def gated_loss(
        keep: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, float]]:
        of_step = values(step) if callable(values) else values
        with gated(model, sites, keep, of_step, special_ids=special_ids):
            concept, retain = _checked(loss(model, step))
        total = settings.concept_weight * concept + settings.retain_weight * retain
        return total, {
            "concept_loss": float(concept.detach()),
            "retain_loss": float(retain.detach()),
        }

    with evaluating(model), weights_frozen(model):
        gates = optimise_gates(
            sites,
            settings,
            gated_loss,
            accelerator=Accelerator(),
            superset=superset,
            start=start,
            checkpoints=checkpoints,
            watch=watch,
        )
    provenance = {
        "model": type(model).__name__,
        "weights_hash": weights_hash(model),
        "weights_sha256": weights_sha256(model),
        "code_version": code_version(),
        "gate": settings.gate,
        "direction": settings.direction,
        "seed": settings.seed,
    }
    if callable(values):
        values = AblationValues("counterfactual", {})
    return LearnedMask(gates, values, settings, tuple(special_ids), provenance)


def _checked(losses: Any) -> tuple[Tensor, Tensor]:
    is_pair = isinstance(losses, tuple) and len(losses) == 2
    if not is_pair or not all(
        isinstance(value, Tensor) and value.numel() == 1 for value in losses
    ):
        raise UserError(
            "argument loss must return two scalar tensors, (concept loss, retain "
            f"loss), got {_shown(losses)}"
        )
    concept, retain = losses
    return concept, retain


def _shown(losses: object) -> str:
    if isinstance(losses, tuple):
        return f"({', '.join(_shown(value) for value in losses)})"
    if isinstance(losses, Tensor):
        return f"a tensor of shape {tuple(losses.shape)}"
    return type(losses).__name__
