"""The last step of a mask on edges: spare edges are removed, or edges restored."""

import logging

from circuitcut.experiments.circuits.restore_edges import (
    can_restore_edges,
    with_edges_restored,
)
from circuitcut.experiments.circuits.spare_edges import (
    can_remove_spare_edges,
    without_spare_edges,
)
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.plan import Plan

logger = logging.getLogger(__name__)


def finish(plan: Plan, experiment: Experiment, frozen: Frozen) -> Frozen:
    """Remove the kept edges that a circuit can spare, restore those cut in vain.

    Masks of other units stay as they are. A mask that ablates nothing or everything is
    logged as a warning.
    """
    size, settings = plan.size, plan.settings
    if can_remove_spare_edges(frozen.mask, settings, size.n_ablated):
        frozen = without_spare_edges(
            experiment,
            settings,
            frozen,
            n_ablated=size.n_ablated,
            margin_cost=size.concept_target,
        )
    metric = experiment.task.concept_metric
    if can_restore_edges(frozen.mask, settings, metric, size.n_ablated):
        frozen = with_edges_restored(experiment, settings, frozen, size.concept_target)
    mask = frozen.mask
    if mask.n_ablated in (0, mask.n_units):
        logger.warning(
            "the frozen mask ablates %s: ask for --n_ablated, or change --price, "
            "--target_ablated, --lr or --n_steps",
            "nothing" if mask.n_ablated == 0 else "everything",
        )
    return frozen
