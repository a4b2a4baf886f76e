"""Gates trained on a task: its batches, ablation values and objectives."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.subject import kept_order
from circuitcut.experiments.gate_optimisation import (
    PROGRESS_ALONE,
    GateWatch,
    optimise_gates,
)
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.micro_batches import loss_in_micro_batches, rows_that_fit
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.models.sites import Site
from circuitcut.models.spared import spared_positions
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch, Outputs, has_concept, rows_of, to_device
from circuitcut.training.fit_arguments import NO_CHECKPOINTS, Checkpoints
from circuitcut.training.fit_state import saved_steps
from circuitcut.training.objectives import (
    CONCEPT_OBJECTIVES,
    RETAIN_OBJECTIVES,
    ObjectiveSettings,
)

_log = logging.getLogger(__name__)
START_BATCHES = 8
"""Batches of the attribution that gates start from."""
MEAN_BATCH = 64
"""Examples in one forward pass for means."""


def train_gates(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    settings: MaskSettings,
    *,
    superset: FrozenMask | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    watch: GateWatch = PROGRESS_ALONE,
) -> MaskSet:
    """Optimise the gates with the model frozen; the noise is a function of the step.

    Args:
        superset: Only the units that it ablates get a gate.

    Raises:
        UserError: When the loss is not finite; the last checkpoint stays.
    """
    accelerator = experiment.accelerator

    def loss(keep: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        index = step * accelerator.num_processes + accelerator.process_index
        batch = experiment.task.batch(
            "mask", index, size=settings.batch_size, seed=settings.seed
        )
        batch = to_device(examples_to_run(batch, settings), accelerator.device)
        loss_of_rows = partial(_loss_of_rows, experiment, sites, ablated, settings)
        n_rows = _rows_at_once(experiment, sites, settings, batch)
        return loss_in_micro_batches(keep, batch, n_rows, loss_of_rows)

    return optimise_gates(
        sites,
        settings,
        loss,
        accelerator=accelerator,
        superset=superset,
        start=_start(experiment, sites, ablated, settings, checkpoints),
        checkpoints=checkpoints,
        watch=watch,
    )


def _start(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    settings: MaskSettings,
    checkpoints: Checkpoints,
) -> dict[str, Tensor] | None:
    """The ranking of an attribution method that the scores start from.

    None where the scores start equal, or a checkpoint has them.
    """
    folder = checkpoints.folder if checkpoints.resume else None
    if settings.start == "equal" or (folder is not None and saved_steps(folder)):
        return None
    _log.info("ranking the units by %s, to start from", settings.start)
    scores = METHODS[settings.start](
        experiment.task,
        experiment.loaded.model,
        tuple(sites),
        ablated,
        n_batches=START_BATCHES,
        size=settings.batch_size,
        seed=settings.seed,
        special_ids=special_ids(experiment, settings),
    )
    return kept_order(scores, settings.direction)


def examples_to_run(batch: Batch, settings: MaskSettings) -> Batch:
    """The batch; where nothing is retained, its examples of the concept alone.

    Their retained positions do not count then. A batch without the concept is reduced
    to its first example, whose loss is 0.
    """
    of_concept = has_concept(batch)
    if settings.retain_objective != "none":
        weighs_nothing = settings.retain_weight == 0.0 and bool(of_concept.any())
        return rows_of(batch, of_concept) if weighs_nothing else batch
    if not of_concept.any():
        of_concept[0] = True
    rows = rows_of(batch, of_concept)
    return rows | {"retain": torch.zeros_like(rows["retain"])}


def special_ids(experiment: Experiment, settings: MaskSettings) -> tuple[int, ...]:
    """Positions that are never cut, by token id: attention sinks such as [CLS]."""
    return experiment.loaded.special_ids if settings.positions == "words" else ()


def ablation_values(
    experiment: Experiment, sites: Sequence[Site], settings: MaskSettings
) -> AblationValues:
    """What replaces an ablated activation, measured on the `mask` split."""
    if settings.ablation == "mean":
        key = "retain" if settings.mean_over == "retain" else "real"
        n_positions = settings.mean_positions
        return mean_values(
            experiment.loaded.model,
            sites,
            mean_batches(experiment, key, n_positions, settings.per_position),
            per_position=settings.per_position,
        )
    if settings.ablation == "counterfactual":  # recorded batch by batch
        return AblationValues("counterfactual", {})
    return zero_values(sites)


def mean_batches(
    experiment: Experiment, key: str, n_positions: int, per_position: bool
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Inputs and counted positions of the `mask` split, or of every n-th example.

    Special tokens and a causal model's first position are never counted.

    Raises:
        UserError: When means per position are asked of prompts of several lengths.
    """
    task, device = experiment.task, experiment.accelerator.device
    split = list(task.evaluation_batches("mask", size=MEAN_BATCH))
    if per_position:
        _check_aligned(split)
    n_counted = sum(int(batch[key].sum()) for batch in split)
    stride = max(1, math.ceil(n_counted / n_positions))
    if stride > 1:
        split = list(task.evaluation_batches("mask", size=MEAN_BATCH * stride))
    for batch in shown(split, "means"):
        moved = to_device({name: v[::stride] for name, v in batch.items()}, device)
        where = moved[key]
        if "input_ids" in moved:
            ids, mask = moved["input_ids"], moved.get("attention_mask")
            where = where & ~spared_positions(ids, mask, experiment.loaded.special_ids)
        yield task.inputs(moved), where


def _check_aligned(split: Sequence[Batch]) -> None:
    """Means per position need prompts that have the same word kinds everywhere."""
    lengths = {
        int(length)
        for batch in split
        for length in batch["attention_mask"][batch["concept"].any(1)].sum(1)
    }
    if len(lengths) > 1:
        raise UserError(
            "--per_position needs aligned prompts, got prompts of "
            f"{min(lengths)} to {max(lengths)} tokens; leave it out for one mean over "
            "all positions"
        )


def counterfactual_values(
    experiment: Experiment, sites: Sequence[Site], batch: Batch
) -> AblationValues:
    """The sites' activations on the batch's paired corrupted inputs."""
    task, model = experiment.task, experiment.loaded.model
    paired = to_device(task.counterfactual(batch), experiment.accelerator.device)
    return record_values(model, sites, task.inputs(paired))


def cut_with(
    experiment: Experiment, mask: FrozenMask
) -> Callable[[Batch], AbstractContextManager[None]]:
    """The mask as a context for each batch, with the batch's own counterfactuals."""
    model = experiment.loaded.model

    def cut(batch: Batch) -> AbstractContextManager[None]:
        if mask.ablated.kind == "counterfactual":
            values = counterfactual_values(experiment, mask.sites, batch)
            return mask.applied(model, ablated=values)
        return mask.applied(model)

    return cut


def cuts_with(
    experiment: Experiment, masks: Sequence[FrozenMask]
) -> Callable[[Batch], Iterator[AbstractContextManager[None]]]:
    """Several masks as contexts for each batch, whose counterfactuals are run once.

    Args:
        masks: Of the same sites and the same ablation values.
    """
    model = experiment.loaded.model

    def cuts(batch: Batch) -> Iterator[AbstractContextManager[None]]:
        values = None
        if masks[0].ablated.kind == "counterfactual":
            values = counterfactual_values(experiment, masks[0].sites, batch)
        for mask in masks:
            yield mask.applied(model, ablated=values)

    return cuts


def _rows_at_once(
    experiment: Experiment,
    sites: Sequence[Site],
    settings: MaskSettings,
    batch: Batch,
) -> int:
    """Examples that go through the model together: all, or what memory has room for."""
    concept = batch["concept"]
    most = settings.micro_batch or rows_that_fit(
        experiment.loaded.model,
        sites,
        concept[0].numel(),
        counterfactual=settings.ablation == "counterfactual",
    )
    return max(1, int(min(len(concept), most)))


def _loss_of_rows(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    settings: MaskSettings,
    keep: Mapping[str, Tensor],
    batch: Batch,
    shares: Mapping[str, float],
) -> tuple[Tensor, dict[str, float]]:
    """Of some examples of a batch, each behaviour by its share of the weight."""
    task, model = experiment.task, experiment.loaded.model
    reference = _reference(experiment, settings, batch)
    if settings.ablation == "counterfactual":
        ablated = counterfactual_values(experiment, sites, batch)
    with gated(
        model, sites, keep, ablated, special_ids=special_ids(experiment, settings)
    ):
        outputs = task.outputs(model, batch)
    limits = ObjectiveSettings(floor=settings.margin_floor, cap=settings.token_cap)
    concept = shares["concept"] * CONCEPT_OBJECTIVES[settings.concept_objective](
        outputs.concept, reference.concept.logits if reference else None, limits
    )
    loss = settings.concept_weight * concept
    logs = {"concept_loss": float(concept.detach())}
    if settings.retain_objective != "none":
        retain = shares["retain"] * RETAIN_OBJECTIVES[settings.retain_objective](
            outputs.retain, reference.retain.logits if reference else None, limits
        )
        loss = loss + settings.retain_weight * retain
        logs["retain_loss"] = float(retain.detach())
    return loss, logs


def _reference(
    experiment: Experiment, settings: MaskSettings, batch: Batch
) -> Outputs | None:
    """What the uncut model predicts, where an objective compares with it."""
    if not {"kl", "js"} & {settings.retain_objective, settings.concept_objective}:
        return None
    with torch.no_grad():
        return experiment.task.outputs(experiment.loaded.model, batch)
