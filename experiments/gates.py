"""How a mask is trained on a task: one sample of the gates, one pass, one loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from circuitcut.experiments.flags import Experiment
from circuitcut.experiments.micro_batches import loss_in_parts, rows_that_fit
from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate import Direction, GateSettings
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.penalties import Lagrangian, Price
from circuitcut.models.sites import Site
from circuitcut.tasks.base import Batch, Outputs, to_device
from circuitcut.training.loop import FitSettings, fit
from circuitcut.training.objectives import (
    CONCEPT_OBJECTIVES,
    RETAIN_OBJECTIVES,
    ObjectiveSettings,
)

AblationKind = Literal["zero", "mean", "counterfactual"]
ConceptObjective = Literal["margin", "ascent", "uniform", "kl", "js", "cross_entropy"]
RetainObjective = Literal["kl", "cross_entropy"]


@dataclass(frozen=True)
class MaskSettings:
    """One mask-training run, whatever the task."""

    gate: str = "topk"
    direction: Direction = "break"
    ablation: AblationKind = "zero"
    mean_over: Literal["retain", "all"] = "retain"
    per_position: bool = False
    positions: Literal["words", "all"] = "words"
    concept_objective: ConceptObjective = "margin"
    concept_weight: float = 1.0
    retain_objective: RetainObjective = "kl"
    retain_weight: float = 8.0
    margin_floor: float = 1.0
    token_cap: float = 3.0
    penalty: Literal["none", "price", "lagrangian"] = "none"
    price: float = 1e-3
    target_ablated: float = 0.0
    ramp: float = 0.6
    keep_prob: float = 0.99
    k_min: float = 6.0
    k_max: float = 64.0
    temperature_start: float = 1.0
    temperature_end: float = 0.25
    power: float = 1.0
    average: float = 0.05
    n_steps: int = 250
    batch_size: int = 16
    micro_batch: int | None = None
    """Examples that go through the model at once; None: what memory has room for."""
    lr: float = 0.1
    beta2: float = 0.999
    lr_multipliers: float = 0.05
    checkpoint_every: int = 50
    seed: int = 0

    def gate_settings(self) -> GateSettings:
        """The part that the gates read."""
        return GateSettings(
            direction=self.direction,
            keep_prob=self.keep_prob,
            k_min=self.k_min,
            k_max=self.k_max,
            temperature_start=self.temperature_start,
            temperature_end=self.temperature_end,
            power=self.power,
        )


def special_ids(experiment: Experiment, settings: MaskSettings) -> tuple[int, ...]:
    """Token ids whose positions are never cut: attention sinks such as [CLS]."""
    return experiment.loaded.special_ids if settings.positions == "words" else ()


def ablation_values(
    experiment: Experiment, sites: Sequence[Site], settings: MaskSettings
) -> AblationValues:
    """What replaces an ablated activation, measured on the `mask` split."""
    if settings.ablation == "mean":
        key = "retain" if settings.mean_over == "retain" else "real"
        return mean_values(
            experiment.loaded.model,
            sites,
            _mean_batches(experiment, key),
            per_position=settings.per_position,
        )
    if settings.ablation == "counterfactual":  # batch by batch, see below
        return AblationValues("counterfactual", {})
    return zero_values(sites)


def _mean_batches(
    experiment: Experiment, key: str
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    task, device = experiment.task, experiment.accelerator.device
    for batch in task.evaluation_batches("mask", size=64):
        moved = to_device(batch, device)
        yield task.inputs(moved), moved[key]


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


def train_gates(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    settings: MaskSettings,
    *,
    superset: FrozenMask | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    on_step: Callable[[int, MaskSet], None] | None = None,
    progress: str | None = "mask",
) -> MaskSet:
    """Optimise the gates with the model frozen; the noise is a function of the step.

    Raises:
        UserError: When the loss is not finite; the last checkpoint stays.
    """
    accelerator = experiment.accelerator
    masks = MaskSet(
        sites, settings.gate, settings.gate_settings(), trainable=superset
    ).to(accelerator.device)
    penalty = _penalty(settings, masks)
    penalty.to(accelerator.device)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        masks.anneal(step / settings.n_steps)
        index = step * accelerator.num_processes + accelerator.process_index
        batch = experiment.task.batch(
            "mask", index, size=settings.batch_size, seed=settings.seed
        )
        loss, logs = _task_loss(experiment, sites, ablated, settings, masks, batch, rng)
        loss = loss + penalty(masks, step / settings.n_steps)
        logs["expected_ablated"] = float(masks.expected_ablated().detach())
        return loss, logs

    def after_step(step: int) -> None:
        masks.project_()
        if settings.average > 0 and step >= settings.n_steps // 2:
            masks.average_(1 - settings.average)
        if on_step is not None:
            on_step(step, masks)

    fit(
        dict(masks.named_parameters()),
        step_loss,
        FitSettings(
            n_steps=settings.n_steps,
            lr=settings.lr,
            beta2=settings.beta2,
            schedule="late",
            checkpoint_every=settings.checkpoint_every,
            seed=settings.seed,
        ),
        accelerator=accelerator,
        maximised=dict(penalty.named_parameters()),
        lr_maximised=settings.lr_multipliers,
        buffers=dict(masks.named_buffers()),
        after_step=after_step,
        on_log=on_log,
        checkpoints=checkpoints,
        resume=resume,
        progress=progress,
    )
    masks.anneal(1.0)
    return masks


def _penalty(settings: MaskSettings, masks: MaskSet) -> Price | Lagrangian:
    """A price of 0 nats where none was asked for."""
    if settings.penalty == "lagrangian":
        asked = settings.target_ablated
        return Lagrangian(
            direction="break",
            n_units=masks.n_units,
            count=asked if asked >= 1 else None,
            fraction=None if asked >= 1 else asked,
            ramp_fraction=settings.ramp,
        )
    price = settings.price if settings.penalty == "price" else 0.0
    return Price(price, direction=settings.direction, ramp_fraction=settings.ramp)


def _task_loss(
    experiment: Experiment,
    sites: Sequence[Site],
    ablated: AblationValues,
    settings: MaskSettings,
    masks: MaskSet,
    batch: Batch,
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    keep = masks.sample(rng)
    moved = to_device(batch, experiment.accelerator.device)
    part_loss = partial(_part_loss, experiment, sites, ablated, settings)
    size = len(moved["concept"])
    most = settings.micro_batch or rows_that_fit(
        experiment.loaded.model,
        sites,
        moved["concept"][0].numel(),
        counterfactual=settings.ablation == "counterfactual",
    )
    return loss_in_parts(keep, moved, max(1, int(min(size, most))), part_loss)


def _part_loss(
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
    own = ObjectiveSettings(floor=settings.margin_floor, cap=settings.token_cap)
    concept = shares["concept"] * CONCEPT_OBJECTIVES[settings.concept_objective](
        outputs.concept, reference.concept.logits if reference else None, own
    )
    retain = shares["retain"] * RETAIN_OBJECTIVES[settings.retain_objective](
        outputs.retain, reference.retain.logits if reference else None, own
    )
    loss = settings.concept_weight * concept + settings.retain_weight * retain
    return loss, {
        "concept_loss": float(concept.detach()),
        "retain_loss": float(retain.detach()),
    }


def _reference(
    experiment: Experiment, settings: MaskSettings, batch: Batch
) -> Outputs | None:
    """What the uncut model says, where an objective compares with it."""
    if not {"kl", "js"} & {settings.retain_objective, settings.concept_objective}:
        return None
    with torch.no_grad():
        return experiment.task.outputs(experiment.loaded.model, batch)


def gate_histogram(masks: MaskSet) -> dict[str, Tensor]:
    """Gate values by site, for the histograms."""
    return {name: values.detach() for name, values in masks.values().items()}
