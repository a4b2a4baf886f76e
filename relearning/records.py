"""What relearning measured, and the files that keep it during a run."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from circuitcut.relearning.conditions import Condition
from circuitcut.storage.atomic import (
    read_object,
    read_tensors,
    write_json,
    write_tensors,
)
from circuitcut.storage.checksums import check_digest, file_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import Count, Digest, check_type, shown

_COUNT = "count."
_OF_EXAMPLES = {"clusters": torch.int64, "unseen": torch.bool}


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

    def row(self) -> dict[str, Any]:
        """The numbers of this moment, without the per-example tensors."""
        return {
            "step": self.step,
            "examples": self.examples,
            "distance": self.distance,
            "scores": self.scores,
            "unseen_scores": self.unseen_scores,
        }


@dataclass
class ConditionRun:
    """Everything measured in one condition."""

    condition: Condition
    measurements: list[Measurement] = field(default_factory=list)
    at_end: dict[str, Any] = field(default_factory=dict)
    """What the caller's `at_end` returned for the relearned model."""
    finished: bool = False
    digests: dict[int, str] = field(default_factory=dict)
    """SHA-256 of the file of counts, by step."""


@dataclass(frozen=True)
class ConditionFiles:
    """Files of one condition: condition.json, and the counts of each measured step.

    Every measurement is kept as soon as it is made, so that a killed run loses none.
    """

    folder: Path
    settings: dict[str, Any]
    """Everything that decides the numbers; compared on resuming."""
    writes: bool = True
    """False on all but one process of a distributed run."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the training loop's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds the whole condition."""
        path = self.folder / "condition.json"
        return path.exists() and _record(path)["finished"]

    def load(self, condition: Condition, *, resume: bool) -> ConditionRun:
        """What the folder holds of this condition; an empty record if nothing.

        Raises:
            UserError: When there is something and `resume` is not set, or when it is
                damaged or was made with other settings.
        """
        path = self.folder / "condition.json"
        run = ConditionRun(condition)
        if not path.exists():
            return run
        if not resume:
            raise UserError(
                f"{self.folder} holds results; resume the run or start anew"
            )
        saved = _record(path)
        if saved["settings"] != self.settings:
            raise UserError(
                f"{path} was made with other settings or another mask; resume with the "
                "settings of the run, or start a new one"
            )
        digests = saved.get("counts_sha256", {})
        run.digests = {int(step): digest for step, digest in digests.items()}
        for row in saved["rows"]:
            digest = run.digests.get(row["step"])
            check_digest(self._counts(row["step"]), digest, path)
            run.measurements.append(self._measurement(row))
        run.at_end, run.finished = saved["at_end"], saved["finished"]
        return run

    def add(self, run: ConditionRun, measured: Measurement) -> None:
        """Keep one more measurement, its tensors first."""
        tensors = {_COUNT + name: value for name, value in measured.counts.items()}
        tensors |= {"clusters": measured.clusters, "unseen": measured.unseen}
        if self.writes:
            write_tensors(self._counts(measured.step), tensors)
            run.digests[measured.step] = file_digest(self._counts(measured.step))
            self._write(run)

    def finish(self, run: ConditionRun) -> None:
        """Mark the condition finished and delete its checkpoints, which are large."""
        run.finished = True
        if self.writes:
            self._write(run)
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _write(self, run: ConditionRun) -> None:
        content = {
            "condition": asdict(run.condition),
            "settings": self.settings,
            "rows": [measured.row() for measured in run.measurements],
            "counts_sha256": run.digests,
            "at_end": run.at_end,
            "finished": run.finished,
        }
        write_json(self.folder / "condition.json", content)

    def _measurement(self, row: "_Row") -> Measurement:
        tensors = read_tensors(self._counts(row["step"]))
        _check_counts(self._counts(row["step"]), tensors)
        counts = {
            name.removeprefix(_COUNT): value
            for name, value in tensors.items()
            if name.startswith(_COUNT)
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


class _Row(TypedDict):
    step: Count
    examples: Count
    scores: dict[str, float | None]
    unseen_scores: dict[str, float | None]
    distance: float


class _Record(TypedDict):
    settings: dict[str, Any]
    rows: list[_Row]
    at_end: dict[str, Any]
    finished: bool
    counts_sha256: NotRequired[dict[str, Digest]]


def _record(path: Path) -> _Record:
    """A condition.json whose entries have their types, its rows in order of steps."""
    saved: Any = read_object(path)
    check_type(saved, _Record, str(path))
    steps = [row["step"] for row in saved["rows"]]
    if steps != sorted(set(steps)):
        raise UserError(f"{path}: the steps of its rows must rise; restore it")
    for step in saved.get("counts_sha256", {}):
        if not step.isdecimal():
            raise UserError(f"{path}: counts_sha256 names the step {shown(step)}")
    return saved  # type: ignore[no-any-return]


def _check_counts(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse counts that are not one row an example each."""
    lengths = {value.shape[:1] for value in tensors.values()}
    kinds = {name: tensors[name].dtype for name in _OF_EXAMPLES if name in tensors}
    if len(lengths) != 1 or kinds != _OF_EXAMPLES:
        raise UserError(
            f"{path} must hold clusters, unseen and counts of the same examples; "
            "restore it, or start a new run"
        )


def _none_to_nan(scores: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if v is None else v for name, v in scores.items()}
