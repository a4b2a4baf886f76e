"""Relearning: fine-tune the cut, the uncut and a randomly cut model on the same data.

Every condition starts from its own copy of the base model, sees the same batches in the
same order and is measured on held-out data before the first step and along the run.
Two controls differ: `retain_only` sees no example of the concept, and `never_learned`
starts from a base model that was trained without them.
Finished conditions and measured moments are kept in files, so a killed run goes on.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loading import LoadedModel
from circuitcut.relearning.conditions import Condition, trained_parameters
from circuitcut.relearning.holding import check_holdable, held
from circuitcut.relearning.records import ConditionFiles, ConditionRun, Measurement
from circuitcut.relearning.redistribution import weight_distance
from circuitcut.storage.cache import content_hash
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Task, to_device
from circuitcut.tasks.evaluation import evaluate
from circuitcut.training.loop import FitSettings, StepLoss, fit
from circuitcut.training.shares import own_share


@dataclass(frozen=True)
class RelearnSettings:
    """How every condition is fine-tuned and measured."""

    n_steps: int = 60
    batch_size: int = 8
    lr: float = 5e-5
    weight_decay: float = 0.01
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "late"] = "constant"
    warmup: int = 0
    clip_norm: float | None = 1.0
    trained: str = "all"
    """Which parameters train: see `conditions.trained_parameters`."""
    n_evaluations: int = 8
    """Measured moments after step 0, spread geometrically."""
    evaluation_size: int = 64
    """Examples of one forward pass of the evaluation; changes no score."""
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "n_evaluations", "evaluation_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"argument {name} must be at least 1, got {getattr(self, name)}"
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"argument lr must be positive, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"argument weight_decay must be at least 0, got {self.weight_decay}"
            )


AtEnd = Callable[[Condition, nn.Module, FrozenMask | None], dict[str, Any]]
"""(condition, relearned model, mask that still holds) -> JSON-able findings."""
OnLog = Callable[[Condition, int, dict[str, float]], None]
"""(condition, step, numbers of the training step)."""


def evaluation_steps(n_steps: int, n_evaluations: int) -> tuple[int, ...]:
    """0, then at most `n_evaluations` steps, geometrically from 1 to `n_steps`."""
    if n_evaluations == 1:
        return (0, n_steps)
    ratio = n_steps ** (1 / (n_evaluations - 1))
    spread = {round(ratio**i) for i in range(n_evaluations)}
    return (0, *sorted(spread | {n_steps}))


def relearn(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    wanted: Sequence[Condition],
    settings: RelearnSettings,
    folder: Path,
    *,
    never_learned: LoadedModel | None = None,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    at_end: AtEnd | None = None,
    on_log: OnLog | None = None,
) -> list[ConditionRun]:
    """Run every condition, or read it where `folder` holds it finished.

    Args:
        task: Gives the `relearn` batches and the `heldout` scores.
        loaded: The base model; its weights are left as they are.
        mask: The cut under study.
        wanted: Conditions, as `conditions.conditions` combines them.
        settings: Shared by all conditions.
        folder: One subfolder a condition is written here.
        never_learned: The base model of the condition of that name.
        resume: Go on from what `folder` holds.
        accelerator: Device and processes of the training loop.
        at_end: Called on every relearned model while its mask holds; its JSON-able
            result is kept as `ConditionRun.at_end`.
        on_log: Called with the numbers of every training step.

    Raises:
        UserError: When a part to train matches nothing, a cut cannot be written into
            the weights, a split is empty, `never_learned` is missing, or `folder` holds
            other settings. All of this is checked before the first step.
    """
    _check(task, loaded, mask, wanted, settings)
    starts = {c.name: loaded for c in wanted}
    if "never_learned" in starts:
        if never_learned is None:
            raise UserError("condition never_learned needs a base model of its own")
        starts["never_learned"] = never_learned
    return [
        run_condition(
            task,
            starts[condition.name],
            mask,
            condition,
            settings,
            folder / condition.key,
            resume=resume,
            accelerator=accelerator,
            at_end=at_end,
            on_log=on_log,
        )
        for condition in wanted
    ]


def run_condition(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    condition: Condition,
    settings: RelearnSettings,
    folder: Path,
    *,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    at_end: AtEnd | None = None,
    on_log: OnLog | None = None,
) -> ConditionRun:
    """Fine-tune one copy of the base model and measure it along the way.

    Arguments and errors are those of `relearn`; `folder` is this condition's own. The
    processes of a distributed run divide each batch; the first one alone measures and
    writes, so that the results of the others hold no measurements.
    """
    accelerator = accelerator or Accelerator()
    made_with = asdict(settings) | {"mask": mask_hash(mask)}
    files = ConditionFiles(folder, made_with, writes=accelerator.is_main_process)
    run = files.load(condition, resume=resume)
    accelerator.wait_for_everyone()  # none may write before all have read
    if run.finished:
        return run
    model = copy.deepcopy(loaded.model)
    held_mask = start_(model, mask, condition)
    n_seen = torch.zeros((), dtype=torch.long)
    wanted = evaluation_steps(settings.n_steps, settings.n_evaluations)

    def measure(step: int) -> None:
        known = {measured.step for measured in run.measurements}
        if accelerator.is_main_process and step in wanted and step not in known:
            size = settings.evaluation_size
            measured = measured_at(step, int(n_seen), task, model, loaded.model, size)
            run.measurements.append(measured)
            files.add(run, measured)

    with held(model, held_mask) if held_mask else nullcontext(()) as frozen:

        def after_step(step: int) -> None:
            for entry in frozen:
                entry.restore_()
            measure(step + 1)

        measure(0)
        fit(
            _trained_alone_(model, settings.trained),
            _step_loss(task, model, condition, settings, n_seen, accelerator),
            _fit_settings(settings, condition),
            accelerator=accelerator,
            buffers={"n_seen": n_seen},
            after_step=after_step,
            on_log=partial(on_log, condition) if on_log else None,
            checkpoints=files.checkpoints,
            resume=resume,
            progress=f"relearn {condition.key}",
        )
        run.at_end = at_end(condition, model.eval(), held_mask) if at_end else {}
    files.finish(run)
    return run


def start_(
    model: nn.Module, mask: FrozenMask, condition: Condition
) -> FrozenMask | None:
    """Bring `model` to the start of a condition; the mask that must then be held.

    A one-shot cut is written into the weights, which are the same at every position: a
    mask that spares special tokens is written without that exception.

    Raises:
        UserError: When weights cannot hold the cut.
    """
    chosen = condition.mask(mask)
    if chosen is None or condition.holding == "lasting":
        return chosen
    replace(chosen, special_ids=()).bake_(model)
    return None


def measured_at(
    step: int, examples: int, task: Task, model: nn.Module, base: nn.Module, size: int
) -> Measurement:
    """Held-out scores of `model` as it stands, and its distance from the base model."""
    found = evaluate(task, model, "heldout", size=size)
    return Measurement(
        step,
        examples,
        found.scores,
        found.unseen_scores,
        weight_distance(model, base),
        {name: value.cpu() for name, value in found.counts.items()},
        found.clusters.cpu(),
        found.unseen.cpu(),
    )


def mask_hash(mask: FrozenMask) -> str:
    """SHA-256 of what a mask keeps and by what value it ablates."""
    parts: list[str | bytes] = [mask.ablated.kind, str(mask.special_ids)]
    for site in mask.sites:
        parts += [site.name, mask.keep[site.name].cpu().numpy().tobytes()]
    for name, value in sorted(mask.ablated.values.items()):
        parts += [name, value.detach().cpu().float().numpy().tobytes()]
    return content_hash(*parts)


def _check(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    wanted: Sequence[Condition],
    settings: RelearnSettings,
) -> None:
    trained_parameters(loaded.model, settings.trained)
    check_holdable(mask, {c.holding for c in wanted if c.holding})
    for split in ("relearn", "heldout"):
        if not task.n_examples(split):
            raise UserError(
                f"split {split!r} of task {task.name!r} must not be empty; "
                "give more data"
            )
    for condition in {c.name: c for c in wanted if c.holding == "one_shot"}.values():
        start_(copy.deepcopy(loaded.model), mask, condition)
    for condition in wanted:
        _batch(task, condition, settings, 0)


def _trained_alone_(model: nn.Module, trained: str) -> dict[str, nn.Parameter]:
    """The parameters to train, with gradients on; those of all others are off."""
    parameters = trained_parameters(model, trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    return parameters


def _step_loss(
    task: Task,
    model: nn.Module,
    condition: Condition,
    settings: RelearnSettings,
    n_seen: Tensor,
    accelerator: Accelerator,
) -> StepLoss:
    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del rng  # only dropout is random, from the global generator
        batch = _batch(task, condition, settings, step)
        n_seen.add_(len(batch["cluster"]))
        batch, weight = own_share(
            batch,
            task.target_weights(batch),
            accelerator.process_index,
            accelerator.num_processes,
        )
        model.train()
        return weight * task.finetune_loss(model, to_device(batch, _device(model))), {}

    return step_loss


def _batch(
    task: Task, condition: Condition, settings: RelearnSettings, step: int
) -> Batch:
    size, seed = settings.batch_size, condition.seed
    if condition.retains_only:
        return task.retain_batch("relearn", step, size=size, seed=seed)
    return task.finetune_batch(
        "relearn",
        step,
        size=size,
        seed=seed,
        limit=condition.limit,
    )


def _fit_settings(settings: RelearnSettings, condition: Condition) -> FitSettings:
    return FitSettings(
        n_steps=settings.n_steps,
        lr=settings.lr,
        optimiser=settings.optimiser,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup=settings.warmup,
        clip_norm=settings.clip_norm,
        checkpoint_every=settings.checkpoint_every,
        seed=condition.seed,
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
