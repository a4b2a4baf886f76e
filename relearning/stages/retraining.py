"""Prune a model, retrain it in stages, and keep every stage.

Lo et al. (2024), "Large Language Models Relearn Removed Concepts",
https://arxiv.org/abs/2401.01814: optimiser and schedule begin anew in each stage.
Departure: a lasting mask holds the pruned units at zero through all stages; `one_shot`
is the published way.
"""

import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loaded import LoadedModel
from circuitcut.relearning.finetune import HeldModel, held_model
from circuitcut.relearning.protocol import (
    finetuning_loss,
    fit_settings,
    mask_hash,
    measured_at,
)
from circuitcut.relearning.records import Measurement
from circuitcut.relearning.stages.arms import Arm
from circuitcut.relearning.stages.records import (
    StageFiles,
    StageRecord,
    measured_tensors,
)
from circuitcut.relearning.stages.silencing import silence_
from circuitcut.relearning.study import RelearnSettings
from circuitcut.storage.atomic import jsonable
from circuitcut.tasks.base import Task
from circuitcut.training.fit_arguments import NO_CHECKPOINTS, Checkpoints, Watch
from circuitcut.training.loop import mixed_seed

KeepWeights = Literal["all", "last"]
Observation = tuple[dict[str, Any], dict[str, Tensor]]
Observe = Callable[[nn.Module, "StageOf"], Observation]
"""(model as it stands, its mask on; which stage) -> (JSON-able entries, tensors by
unit), which are kept beside the scores."""
OnLog = Callable[[Arm, int, dict[str, float]], None]
"""(arm, step counted through all stages, numbers of the training step)."""


@dataclass(frozen=True)
class StageOf:
    """Which stage of which arm is observed."""

    arm: Arm
    number: int
    """0 right after pruning."""
    mask: FrozenMask | None
    """What was pruned; None in `uncut`."""
    is_held: bool
    """Whether the pruned units are held at zero."""


@dataclass(frozen=True)
class StagedStudy:
    """What all arms of one seed share."""

    task: Task
    """Gives the `relearn` batches and the `heldout` scores."""
    loaded: LoadedModel
    """The base model; its weights are left as they are."""
    settings: RelearnSettings
    """Of one stage; `n_steps` are those of a stage."""
    n_stages: int
    observe: Observe
    accelerator: Accelerator
    keep_weights: KeepWeights = "all"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    observed_with: Mapping[str, Any] = field(default_factory=dict)
    """What decides the observations; compared on resuming."""
    on_log: OnLog | None = None

    def made_with(self, mask: FrozenMask | None) -> dict[str, Any]:
        """What decides the numbers of an arm."""
        made_with = {
            "base_sha256": self.loaded.weights_sha256,
            "mask_sha256": None if mask is None else mask_hash(mask),
            "settings": asdict(self.settings) | {"n_stages": self.n_stages},
            "observed_with": dict(self.observed_with),
        }
        return dict(jsonable(made_with))


def stage_folder(folder: Path, number: int) -> Path:
    """The folder of a stage within that of its arm."""
    return folder / f"stage-{number}"


def run_arm(
    study: StagedStudy, arm: Arm, mask: FrozenMask | None, folder: Path
) -> list[StageRecord]:
    """Prune, retrain in stages and observe; finished stages are read from `folder`.

    Args:
        mask: What this arm prunes; None for `uncut`.
        folder: That of this arm; one folder a stage is written here.

    Returns:
        One record a stage, the pruned model first.

    Raises:
        UserError: When a finished stage is damaged, or of another base model or other
            settings; it and the other finished stages stay as they are.
    """
    writes = study.accelerator.is_main_process
    made_with = study.made_with(mask)
    files = [
        StageFiles(stage_folder(folder, number), made_with, writes)
        for number in range(study.n_stages + 1)
    ]
    records = _finished(files)
    study.accelerator.wait_for_everyone()
    if len(records) == len(files):
        return records
    model, held, n_pruned = _started(study, arm, mask)
    if len(records) > 1:
        files[len(records) - 1].load_weights_(model)
    for number in range(len(records), len(files)):
        which = StageOf(arm, number, mask, is_held=held is not None)
        checkpoints = _checkpoints(study, folder / f"checkpoints-{number}")
        with held_model(model, held, study.settings.trained) as tuned:
            if number:
                _retrain(study, arm, number, tuned, checkpoints)
            record = _observed(study, model.eval(), which, n_pruned)
        saved = files[number].save(*record, weights=model if number else None)
        if number > 1 and study.keep_weights == "last":
            files[number - 1].remove_weights()
        _remove(checkpoints, writes)
        records.append(saved)
    return records


def _finished(files: list[StageFiles]) -> list[StageRecord]:
    """The finished stages, up to the first one that is not."""
    records: list[StageRecord] = []
    for of_stage in files:
        record = of_stage.load()
        if record is None:
            break
        records.append(record)
    return records


def _started(
    study: StagedStudy, arm: Arm, mask: FrozenMask | None
) -> tuple[nn.Module, FrozenMask | None, dict[str, int]]:
    """A pruned copy of the base model, the mask to hold, and counts by site."""
    model = deepcopy(study.loaded.model)
    if mask is None:
        return model, None, {}
    if arm.holding == "lasting":
        return model, mask, mask.n_ablated_at
    return model, None, silence_(model, mask)


def _checkpoints(study: StagedStudy, folder: Path) -> Checkpoints:
    """Within a stage there are checkpoints only where they are asked for."""
    if not study.settings.checkpoint_every:
        return NO_CHECKPOINTS
    return Checkpoints(folder, resume=True, provenance=study.provenance)


def _retrain(
    study: StagedStudy,
    arm: Arm,
    number: int,
    tuned: HeldModel,
    checkpoints: Checkpoints,
) -> None:
    """One stage; its data go on where the stage before ended."""
    settings, n_before = study.settings, (number - 1) * study.settings.n_steps
    n_seen = torch.zeros((), dtype=torch.long)
    loss = finetuning_loss(
        study.task, arm.as_condition, settings, n_seen, study.accelerator
    )
    on_log = study.on_log
    of_stage = fit_settings(settings, arm.as_condition)
    tuned.fit_(
        lambda model, step: loss(model, n_before + step),
        replace(of_stage, seed=mixed_seed(arm.seed, number)),
        watch=Watch(
            progress=f"{arm.key}, seed {arm.seed}, stage {number} of {study.n_stages}",
            on_log=None
            if on_log is None
            else lambda step, numbers: on_log(arm, n_before + step, numbers),
        ),
        checkpoints=checkpoints,
        accelerator=study.accelerator,
        buffers={"n_seen": n_seen},
    )


def _observed(
    study: StagedStudy, model: nn.Module, which: StageOf, n_pruned: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of stage.json and tensors: scores, counts and the observation."""
    arm, settings = which.arm, study.settings
    step = which.number * settings.n_steps
    measured = measured_at(
        step,
        step * settings.batch_size,
        study.task,
        model,
        study.loaded.model,
        settings.evaluation_size,
    )
    entries, tensors = study.observe(model, which)
    content = {**_scores(measured, arm, which.number), "n_pruned": dict(n_pruned)}
    return content | entries, measured_tensors(measured) | tensors


def _scores(measured: Measurement, arm: Arm, number: int) -> dict[str, Any]:
    return {**asdict(arm), "stage": number, **measured.row()}


def _remove(checkpoints: Checkpoints, writes: bool) -> None:
    if checkpoints.folder is not None and writes:
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
