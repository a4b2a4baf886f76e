"""Relearning: fine-tune the cut, the uncut and a randomly cut model on the same data.

Every condition starts from its own copy of the base model, sees the same batches in the
same order and is measured on held-out data before the first step and along the run.
Finished conditions and measured moments are kept in files, so a killed run goes on.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from masks.frozen_mask import FrozenMask
from models.loading import LoadedModel
from relearning.conditions import Condition, trained_parameters
from relearning.holding import Frozen, held
from relearning.redistribution import weight_distance
from storage.atomic import read_json, read_tensors, write_json, write_tensors
from storage.errors import UserError
from tasks.base import Batch, Task, to_device
from tasks.evaluation import evaluate
from training.loop import FitSettings, fit


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
        for name, low in {"lr": 0.0, "weight_decay": -1e-30}.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > low):
                raise UserError(f"argument {name} must be positive, got {value}")


@dataclass(frozen=True)
class Measurement:
    """Scores at one moment of one condition."""

    step: int
    """Optimiser steps done; 0 is right after the cut."""
    examples: int
    """Training examples seen by then, repeats counted."""
    scores: dict[str, float]
    unseen_scores: dict[str, float]
    """The same on examples whose entities occur in no other split."""
    distance: float
    """L2 distance of all weights from the base model's."""
    counts: dict[str, Tensor]
    """Per-example counts, as `Task.counts` gives them, for the bootstrap."""
    clusters: Tensor
    unseen: Tensor


@dataclass
class ConditionRun:
    """Everything measured in one condition."""

    condition: Condition
    measurements: list[Measurement] = field(default_factory=list)
    at_end: dict[str, Any] = field(default_factory=dict)
    """What the caller's `at_end` found in the relearned model."""
    finished: bool = False


AtEnd = Callable[[Condition, nn.Module, FrozenMask | None], dict[str, Any]]


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
    resume: bool = False,
    accelerator: Accelerator | None = None,
    at_end: AtEnd | None = None,
) -> list[ConditionRun]:
    """Run every condition, or read it where `folder` holds it finished.

    Args:
        task: Gives the `relearn` batches and the `heldout` scores.
        loaded: The base model; its weights are left as they are.
        mask: The cut under study.
        wanted: Conditions, as `conditions.conditions` combines them.
        settings: Shared by all conditions.
        folder: One subfolder a condition is written here.
        resume: Go on from what `folder` holds.
        accelerator: Device and processes of the training loop.
        at_end: Called on every relearned model while its mask holds; its JSON-able
            result is kept as `ConditionRun.at_end`.

    Raises:
        UserError: When a part to train matches nothing, a cut cannot be written into
            the weights, a split is empty, or `folder` holds other settings. All of this
            is checked before the first step.
    """
    _check(task, loaded, mask, wanted, settings)
    return [
        run_condition(
            task,
            loaded,
            condition.mask(mask),
            condition,
            settings,
            folder / condition.key,
            resume=resume,
            accelerator=accelerator,
            at_end=at_end,
        )
        for condition in wanted
    ]


def run_condition(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask | None,
    condition: Condition,
    settings: RelearnSettings,
    folder: Path,
    *,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    at_end: AtEnd | None = None,
) -> ConditionRun:
    """Fine-tune one copy of the base model and measure it along the way.

    Arguments and errors are those of `relearn`; `mask` is None for the uncut model.
    """
    store = _Store(folder, condition, settings)
    run = store.load(resume)
    if run.finished:
        return run
    model = copy.deepcopy(loaded.model)
    if mask is not None and condition.holding == "one_shot":
        mask.bake_(model)
        mask = None
    parameters = trained_parameters(model, settings.trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    n_seen = torch.zeros((), dtype=torch.long)
    wanted = evaluation_steps(settings.n_steps, settings.n_evaluations)

    def measure(step: int) -> None:
        known = {measurement.step for measurement in run.measurements}
        if step in wanted and step not in known:
            measured = _measure(task, model, loaded.model, step, int(n_seen), settings)
            store.add(run, measured)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del rng
        batch = _batch(task, condition, settings, step)
        n_seen.add_(len(batch["cluster"]))
        loss = task.finetune_loss(model, to_device(batch, _device(model)))
        return loss, {"relearn_loss": float(loss.detach())}

    with _holding(model, mask) as frozen:

        def after_step(step: int) -> None:
            for entry in frozen:
                entry.restore_()
            measure(step + 1)

        measure(0)
        model.train()
        fit(
            parameters,
            step_loss,
            _fit_settings(settings, condition),
            accelerator=accelerator,
            buffers={"n_seen": n_seen},
            after_step=after_step,
            checkpoints=folder / "checkpoints",
            resume=resume,
            progress=f"relearn {condition.key}",
        )
        model.eval()
        if at_end is not None:
            run.at_end = at_end(condition, model, mask)
    store.finish(run)
    return run


@contextmanager
def _holding(model: nn.Module, mask: FrozenMask | None) -> Iterator[tuple[Frozen, ...]]:
    if mask is None:
        yield ()
    else:
        with held(model, mask) as frozen:
            yield frozen


def _check(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    wanted: Sequence[Condition],
    settings: RelearnSettings,
) -> None:
    trained_parameters(loaded.model, settings.trained)
    for split in ("relearn", "heldout"):
        if not task.n_examples(split):
            raise UserError(
                f"split {split!r} of task {task.name!r} must not be empty; "
                "give more data"
            )
    if any(condition.holding == "one_shot" for condition in wanted):
        mask.bake_(copy.deepcopy(loaded.model))
    for condition in wanted:
        _batch(task, condition, settings, 0)


def _batch(
    task: Task, condition: Condition, settings: RelearnSettings, step: int
) -> Batch:
    return task.finetune_batch(
        "relearn",
        step,
        size=settings.batch_size,
        seed=condition.seed,
        limit=condition.limit,
    )


def _measure(
    task: Task,
    model: nn.Module,
    base: nn.Module,
    step: int,
    examples: int,
    settings: RelearnSettings,
) -> Measurement:
    found = evaluate(task, model, "heldout", size=settings.evaluation_size)
    return Measurement(
        step,
        examples,
        found.scores,
        found.unseen_scores,
        weight_distance(model, base),
        found.counts,
        found.clusters,
        found.unseen,
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


@dataclass(frozen=True)
class _Store:
    """Files of one condition: condition.json, and the counts of each measured step."""

    folder: Path
    condition: Condition
    settings: RelearnSettings

    def load(self, resume: bool) -> ConditionRun:
        path = self.folder / "condition.json"
        run = ConditionRun(self.condition)
        if not path.exists():
            return run
        if not resume:
            raise UserError(
                f"{self.folder} holds a relearning run; resume it or start anew"
            )
        saved = read_json(path)
        if saved["settings"] != asdict(self.settings):
            raise UserError(
                f"{path} was made with other settings; repeat them or start a new run"
            )
        run.measurements = [self._measurement(row) for row in saved["rows"]]
        run.at_end, run.finished = saved["at_end"], saved["finished"]
        return run

    def add(self, run: ConditionRun, measured: Measurement) -> None:
        tensors = {f"count.{name}": value for name, value in measured.counts.items()}
        tensors |= {"clusters": measured.clusters, "unseen": measured.unseen}
        write_tensors(self._counts(measured.step), tensors, None)
        run.measurements.append(measured)
        self._write(run)

    def finish(self, run: ConditionRun) -> None:
        run.finished = True
        self._write(run)

    def _write(self, run: ConditionRun) -> None:
        rows = [
            {
                "step": measured.step,
                "examples": measured.examples,
                "distance": measured.distance,
                "scores": _nan_to_none(measured.scores),
                "unseen_scores": _nan_to_none(measured.unseen_scores),
            }
            for measured in run.measurements
        ]
        content = {
            "condition": asdict(self.condition),
            "settings": asdict(self.settings),
            "rows": rows,
            "at_end": run.at_end,
            "finished": run.finished,
        }
        write_json(self.folder / "condition.json", content)

    def _measurement(self, row: dict[str, Any]) -> Measurement:
        tensors = read_tensors(self._counts(row["step"]))
        counts = {
            name.removeprefix("count."): value
            for name, value in tensors.items()
            if name.startswith("count.")
        }
        return Measurement(
            row["step"],
            row["examples"],
            _none_to_nan(row["scores"]),
            _none_to_nan(row["unseen_scores"]),
            row["distance"],
            counts,
            tensors["clusters"],
            tensors["unseen"],
        )

    def _counts(self, step: int) -> Path:
        return self.folder / f"counts-{step:08d}.safetensors"


def _nan_to_none(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: v if math.isfinite(v) else None for name, v in scores.items()}


def _none_to_nan(scores: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if v is None else v for name, v in scores.items()}
