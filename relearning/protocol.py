"""Relearning: fine-tune the cut, the uncut and a randomly cut model on the same data.

Every condition starts from its own copy of the base model (parameters that do not train
are shared with it), sees the same batches in the same order and is measured on held-out
data before the first step and along the run.
Two controls differ: `retain_only` sees no example of the concept, and `never_learned`
starts from a base model that was trained without them.
Finished conditions and measured moments are kept in files, so a killed run continues.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.finetune import Loss, held_model
from circuitcut.relearning.holding import check_holdable
from circuitcut.relearning.lora import (
    adapted_modules,
    add_adapters_,
)
from circuitcut.relearning.lora_rank import check_peft, lora_rank
from circuitcut.relearning.records import ConditionFiles, ConditionRun, Measurement
from circuitcut.relearning.redistribution import weight_distance
from circuitcut.relearning.study import NO_FINDINGS, Findings, RelearnSettings, Study
from circuitcut.relearning.trained import trained_parameters
from circuitcut.storage.cache import content_hash
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Task, to_device
from circuitcut.tasks.evaluation import evaluate
from circuitcut.training.fit_arguments import Checkpoints, Watch
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.shares import own_share

Starts = dict[tuple[str, str | None, int | None], Measurement]
"""Measurements before the first step, by what a condition starts from."""


def evaluation_steps(n_steps: int, n_evaluations: int) -> tuple[int, ...]:
    """0, then at most `n_evaluations` steps, geometrically from 1 to `n_steps`."""
    if n_evaluations == 1:
        return (0, n_steps)
    ratio = n_steps ** (1 / (n_evaluations - 1))
    spread = {round(ratio**i) for i in range(n_evaluations)}
    return (0, *sorted(spread | {n_steps}))


def relearn(
    study: Study,
    conditions: Sequence[Condition],
    folder: Path,
    *,
    resume: bool = False,
    findings: Findings = NO_FINDINGS,
) -> list[ConditionRun]:
    """Run every condition, or read it where `folder` holds it finished.

    Args:
        study: Task, base models, mask and settings.
        conditions: As `conditions.conditions` combines them.
        folder: One subfolder a condition is written here.
        resume: Continue from what `folder` holds.
        findings: Callbacks on training steps and on relearned models.

    Raises:
        UserError: When a part to train matches nothing, a cut cannot be written into
            the weights, a split is empty, `never_learned` is missing, or `folder` holds
            other settings. All of this is checked before the first step.
    """
    _check(study, conditions)
    starts: Starts = {}
    return [
        run_condition(
            study,
            condition,
            folder / condition.key,
            resume=resume,
            findings=findings,
            starts=starts,
            progress=f"relearn {number} of {len(conditions)}, {condition.key}",
        )
        for number, condition in enumerate(conditions, start=1)
    ]


def run_condition(
    study: Study,
    condition: Condition,
    folder: Path,
    *,
    resume: bool = False,
    findings: Findings = NO_FINDINGS,
    starts: Starts | None = None,
    progress: str = "relearn",
) -> ConditionRun:
    """Fine-tune one copy of the base model and measure it along the way.

    Other arguments and errors are those of `relearn`. The processes of a distributed
    run divide each batch; the first one alone measures and writes, so that the results
    of all other processes hold no measurements.

    Args:
        folder: That of this condition.
        starts: What other conditions measured before their first step: conditions that
            start from the same model are measured there once.
        progress: Label of the progress bar.
    """
    accelerator = study.accelerator or Accelerator()
    made_with = asdict(study.settings) | {"mask": mask_hash(study.mask)}
    files = ConditionFiles(folder, made_with, writes=accelerator.is_main_process)
    run = files.load(condition, resume=resume)
    accelerator.wait_for_everyone()  # no process may write before all have read
    if not run.finished:
        known = {} if starts is None else starts
        _finetune(study, accelerator, run, files, resume, findings, known, progress)
        files.finish(run)
    return run


def _finetune(
    study: Study,
    accelerator: Accelerator,
    run: ConditionRun,
    files: ConditionFiles,
    resume: bool,
    findings: Findings,
    starts: Starts,
    progress: str,
) -> None:
    """Fine-tune and measure a condition; its results are added to `run`."""
    condition, settings = run.condition, study.settings
    base = study.base_of(condition).model
    model, held_mask = started(study, condition)
    n_seen = torch.zeros((), dtype=torch.long)
    moments = evaluation_steps(settings.n_steps, settings.n_evaluations)

    def measure(n_done: int) -> None:
        known = {measured.step for measured in run.measurements}
        if accelerator.is_main_process and n_done in moments and n_done not in known:
            size, start = settings.evaluation_size, _start_of(condition)
            measured = starts.get(start) if n_done == 0 else None
            if measured is None:
                measured = measured_at(
                    n_done, int(n_seen), study.task, model, base, size
                )
            if n_done == 0:
                starts[start] = measured
            run.measurements.append(measured)
            files.add(run, measured)

    with held_model(model, held_mask, settings.trained) as tuned:
        measure(0)
        on_log, at_end = findings.on_log, findings.at_end
        checkpoints = Checkpoints(
            files.checkpoints, resume, study.provenance, at_end=findings.end_is_slow
        )
        tuned.fit_(
            finetuning_loss(study.task, condition, settings, n_seen, accelerator),
            fit_settings(settings, condition),
            watch=Watch(
                after_step=lambda step: measure(step + 1),
                on_log=partial(on_log, condition) if on_log else None,
                progress=progress,
            ),
            checkpoints=checkpoints,
            accelerator=accelerator,
            buffers={"n_seen": n_seen},
        )
        run.at_end = at_end(condition, model.eval(), held_mask) if at_end else {}


def _start_of(condition: Condition) -> tuple[str, str | None, int | None]:
    """Equal for conditions whose models are the same before the first step."""
    drawn = condition.seed if condition.name == "random" else None
    return condition.start, condition.holding, drawn


def started(study: Study, condition: Condition) -> tuple[nn.Module, FrozenMask | None]:
    """A model ready for `held_model`, and the mask that must be held.

    Parameters that neither train nor take a one-shot cut are those of the base model.
    """
    base, trained = study.base_of(condition).model, study.settings.trained
    rank = lora_rank(trained)
    model = base_copy(base, trained, is_written=condition.holding == "one_shot")
    held_mask = start_(model, study.mask, condition)
    if rank is not None:
        add_adapters_(model, study.mask, rank=rank, seed=condition.seed, held=held_mask)
    return model, held_mask


def base_copy(base: nn.Module, trained: str, *, is_written: bool) -> nn.Module:
    """A copy of `base` with its own trained parameters, and its own modules.

    Args:
        trained: See `trained.trained_parameters`. The other parameters are shared.
        is_written: A cut will be written into the weights: all parameters are copied.
    """
    if is_written:
        return deepcopy(base)
    is_lora = lora_rank(trained) is not None
    own = {} if is_lora else trained_parameters(base, trained)
    own_ids = {id(parameter) for parameter in own.values()}
    shared = {id(p): p for p in base.parameters() if id(p) not in own_ids}
    return deepcopy(base, shared)


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
    evaluation = evaluate(task, model, "heldout", size=size)
    return Measurement(
        step,
        examples,
        evaluation.scores,
        evaluation.unseen_scores,
        weight_distance(model, base),
        {name: value.cpu() for name, value in evaluation.counts.items()},
        evaluation.clusters.cpu(),
        evaluation.unseen.cpu(),
    )


def mask_hash(mask: FrozenMask) -> str:
    """SHA-256 of what a mask keeps and by what value it ablates."""
    parts: list[str | bytes] = [mask.ablated.kind, str(mask.special_ids)]
    for site in mask.sites:
        parts += [site.name, mask.keep[site.name].cpu().numpy().tobytes()]
    for name, value in sorted(mask.ablated.values.items()):
        parts += [name, value.detach().cpu().float().numpy().tobytes()]
    if mask.ablated.rule is not None:
        parts.append(repr(mask.ablated.rule))
        for name, flipped in sorted(mask.ablated.flipped.items()):
            parts += [name, flipped.cpu().numpy().tobytes()]
    return content_hash(*parts)


def _check(study: Study, conditions: Sequence[Condition]) -> None:
    """Refuse, before the first step, what would fail later."""
    task, model, settings = study.task, study.loaded.model, study.settings
    if lora_rank(settings.trained) is None:
        trained_parameters(model, settings.trained)
    else:
        check_peft()
        adapted_modules(model, study.mask)
    check_holdable(study.mask, {c.holding for c in conditions if c.holding})
    for split in ("relearn", "heldout"):
        if not task.n_examples(split):
            raise UserError(
                f"split {split!r} of task {task.name!r} must not be empty; "
                "give more data"
            )
    one_shot = {c.name: c for c in conditions if c.holding == "one_shot"}
    for condition in one_shot.values():
        start_(deepcopy(model), study.mask, condition)
    for condition in conditions:
        _batch(task, condition, settings, 0)
        study.base_of(condition)


def finetuning_loss(
    task: Task,
    condition: Condition,
    settings: RelearnSettings,
    n_seen: Tensor,
    accelerator: Accelerator,
) -> Loss:
    """The loss of this process's share of each batch; counts the examples seen.

    Args:
        n_seen: Grows by the number of examples of every batch.
    """

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = _batch(task, condition, settings, step)
        n_seen.add_(len(batch["cluster"]))
        batch, weight = own_share(
            batch,
            task.target_weights(batch),
            accelerator.process_index,
            accelerator.num_processes,
        )
        return weight * task.finetune_loss(model, to_device(batch, _device(model)))

    return loss


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


def fit_settings(settings: RelearnSettings, condition: Condition) -> FitSettings:
    """The settings of one optimisation, with the condition's seed."""
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
