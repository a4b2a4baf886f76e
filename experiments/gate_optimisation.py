"""How gates are optimised: one sample a step, one loss, one price for the units.

It knows no task: `gate_training` gives it the loss of a task, `learn_mask` a user's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.penalties import Lagrangian, Price
from circuitcut.masks.registry import GATES
from circuitcut.models.sites import Site
from circuitcut.training.fit_arguments import NO_CHECKPOINTS, Ascent, Checkpoints, Watch
from circuitcut.training.loop import FitSettings, fit

GateLoss = Callable[[Mapping[str, Tensor], int], tuple[Tensor, dict[str, float]]]
"""(gates by site name, step) -> (loss, numbers to log)."""


@dataclass(frozen=True)
class GateWatch:
    """What is told of a training of gates while it runs."""

    on_log: Callable[[int, dict[str, float]], None] | None = None
    """(step, numbers of the step)."""
    on_step: Callable[[int, MaskSet], None] | None = None
    """(step, gates after it)."""
    progress: str | None = "mask"
    """Label of the progress bar; None shows none."""


PROGRESS_ALONE = GateWatch()
"""A progress bar and nothing else."""


def optimise_gates(
    sites: Sequence[Site],
    settings: MaskSettings,
    loss: GateLoss,
    *,
    accelerator: Accelerator,
    superset: FrozenMask | None = None,
    start: Mapping[str, Tensor] | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    watch: GateWatch = PROGRESS_ALONE,
) -> MaskSet:
    """Train gates on `loss` plus the price of the units; noise is the step's own.

    Args:
        superset: Only the units that it ablates get a gate.
        start: A ranking by site name that the scores start from; None: all equal.

    Raises:
        UserError: When the loss is not finite; the last checkpoint stays.
    """
    masks = MaskSet(sites, settings.gate, settings, trainable=superset)
    if start is not None:
        masks.start_from(start)
    masks = masks.to(accelerator.device)
    penalty = _penalty(settings, masks)
    penalty.to(accelerator.device)
    has_one_size = GATES[settings.gate].has_threshold(settings)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        masks.anneal(step / settings.n_steps)
        sample = masks.sample(rng)
        value, logs = loss(sample, step)
        value = value + penalty(masks, step / settings.n_steps)
        with torch.no_grad():
            n_kept = torch.stack([keep.sum() for keep in sample.values()]).sum()
            logs["sample_ablated"] = masks.n_units - float(n_kept)
            if has_one_size:
                logs["expected_ablated"] = float(masks.expected_ablated())
        return value, logs

    def after_step(step: int) -> None:
        masks.project_()
        if settings.round_every and (step + 1) % settings.round_every == 0:
            masks.round_()
        if settings.average > 0 and step >= settings.n_steps // 2:
            masks.average_(1 - settings.average)
        if watch.on_step is not None:
            watch.on_step(step, masks)

    fit(
        dict(masks.named_parameters()),
        step_loss,
        FitSettings(
            n_steps=settings.n_steps,
            lr=settings.lr,
            beta2=settings.beta2,
            schedule=settings.lr_schedule,
            checkpoint_every=settings.checkpoint_every,
            seed=settings.seed,
        ),
        accelerator=accelerator,
        ascent=Ascent(dict(penalty.named_parameters()), settings.lr_multipliers),
        buffers=dict(masks.named_buffers()),
        watch=Watch(after_step, watch.on_log, watch.progress),
        checkpoints=checkpoints,
    )
    masks.anneal(1.0)
    return masks


def _penalty(settings: MaskSettings, masks: MaskSet) -> Price | Lagrangian:
    """A price of 0 nats where none was asked for."""
    n_asked = settings.n_asked(masks.n_units)
    if n_asked is not None:
        return Lagrangian(
            direction="break",
            n_units=masks.n_units,
            count=float(n_asked),
            ramp_fraction=settings.ramp,
        )
    price = settings.price if settings.penalty == "price" else 0.0
    return Price(
        price,
        direction=settings.direction,
        start_fraction=settings.price_start,
        ramp_fraction=settings.ramp,
        shape=settings.price_shape,
    )
