"""What is kept of a stage: stage.json, tensors by unit, and the weights.

A stage is complete when its stage.json is there, which is written last and has the
SHA-256 of the files beside it. docs/schema.md lists the entries.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from torch import Tensor, nn

from circuitcut.relearning.records import Measurement
from circuitcut.storage.atomic import (
    jsonable,
    read_object,
    read_tensors,
    write_json,
    write_tensors,
)
from circuitcut.storage.checksums import check_digest, file_digest
from circuitcut.storage.errors import UserError, one_line
from circuitcut.storage.reading.typed_fields import Count, Digest, check_type

HEADER, UNITS, WEIGHTS = "stage.json", "units.safetensors", "weights.safetensors"
FORMAT_VERSION = 1
_COUNT = "count."
Scores = dict[str, float | None]


class _MadeWith(TypedDict):
    base_sha256: NotRequired[Digest | None]


class _Header(TypedDict):
    """Types of the entries of stage.json; `stage` is null for the base model."""

    format_version: int
    condition: str
    seed: Count
    stage: Count | None
    step: Count
    examples: Count
    distance: float
    scores: Scores
    unseen_scores: Scores
    made_with: _MadeWith
    sha256: dict[str, Digest]
    holding: NotRequired[str | None]
    share: NotRequired[float]
    n_pruned: NotRequired[dict[str, Count]]
    tune: NotRequired[Scores]
    fresh_mask: NotRequired[dict[str, Any] | None]


class _Kept(TypedDict):
    """Types of the JSON file beside tensors that a seed keeps."""

    sha256: Digest
    seconds: NotRequired[dict[str, float]]


class _Row(TypedDict):
    condition: str
    holding: str | None
    share: float
    seed: Count
    n_pruned: Count
    tune: Scores


class _Scanned(TypedDict):
    """Types of scan.json."""

    rows: list[_Row]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage of one arm."""

    header: Mapping[str, Any]
    """The content of stage.json."""
    tensors: Mapping[str, Tensor]
    """Of units.safetensors: by unit over all levels, (unit, ...), and the counts of
    every held-out example."""

    def measurement(self) -> Measurement:
        """The scores, with the counts that the bootstrap resamples."""
        header = self.header
        counts = {
            name.removeprefix(_COUNT): value
            for name, value in self.tensors.items()
            if name.startswith(_COUNT)
        }
        return Measurement(
            header["step"],
            header["examples"],
            _none_to_nan(header["scores"]),
            _none_to_nan(header["unseen_scores"]),
            float(header["distance"]),
            counts,
            self.tensors["clusters"],
            self.tensors["unseen"],
        )


def measured_tensors(measured: Measurement) -> dict[str, Tensor]:
    """The tensors of a measurement as a stage keeps them."""
    tensors = {_COUNT + name: value for name, value in measured.counts.items()}
    return tensors | {"clusters": measured.clusters, "unseen": measured.unseen}


@dataclass(frozen=True)
class StageFiles:
    """The folder of one stage."""

    folder: Path
    made_with: Mapping[str, Any]
    """What decides the numbers: `base_sha256` and settings; compared on reading."""
    writes: bool = True
    """False on all but one process of a distributed run."""

    def load(self) -> StageRecord | None:
        """The stage, if it is complete; None otherwise.

        Raises:
            UserError: When it is damaged, or of another base model or other settings.
        """
        path = self.folder / HEADER
        if not path.exists():
            return None
        header = self._header()
        check_digest(self.folder / UNITS, header["sha256"].get(UNITS), path)
        tensors = read_tensors(self.folder / UNITS)
        missing = {"clusters", "unseen"} - tensors.keys()
        if missing:
            raise UserError(
                f"{self.folder / UNITS} lacks {', '.join(sorted(missing))}; delete "
                f"{self.folder} and the later stages beside it, and resume"
            )
        return StageRecord(header, tensors)

    def _header(self) -> dict[str, Any]:
        path = self.folder / HEADER
        header = _read_header(path)
        self._check_made_with(header, path)
        return header

    def _check_made_with(self, header: Mapping[str, Any], path: Path) -> None:
        saved = header.get("made_with") or {}
        if saved.get("base_sha256") != self.made_with.get("base_sha256"):
            raise UserError(
                f"{path} is a stage of another base model (SHA-256 "
                f"{str(saved.get('base_sha256'))[:8]}, this one has "
                f"{str(self.made_with.get('base_sha256'))[:8]}); restore the base "
                "model, or start a new run"
            )
        other = [k for k, v in self.made_with.items() if saved.get(k) != v]
        if other:
            raise UserError(
                f"{path} was made with other {', '.join(other)}; resume with the "
                "settings of the run, or start a new one"
            )

    def save(
        self,
        content: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        weights: nn.Module | None,
    ) -> StageRecord:
        """Write the stage, stage.json last; the record as it will be read back."""
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            **content,
            "made_with": dict(self.made_with),
        }
        if not self.writes:
            return StageRecord(jsonable(header), tensors)
        write_tensors(self.folder / UNITS, tensors)
        digests = {UNITS: file_digest(self.folder / UNITS)}
        if weights is not None:
            write_tensors(self.folder / WEIGHTS, weights.state_dict())
            digests[WEIGHTS] = file_digest(self.folder / WEIGHTS)
        header = dict(jsonable(header | {"sha256": digests}))
        write_json(self.folder / HEADER, header)
        return StageRecord(header, tensors)

    def load_weights_(self, model: nn.Module) -> None:
        """Read the weights after this stage into `model`.

        Raises:
            UserError: When they are missing, damaged or of another model.
        """
        path = self.folder / WEIGHTS
        header = self._header()
        if not path.exists():
            raise UserError(
                f"{path} is gone, from which the next stage begins; restore it, or "
                f"delete {self.folder} and the later stages beside it"
            )
        check_digest(path, header["sha256"].get(WEIGHTS), self.folder / HEADER)
        try:
            model.load_state_dict(read_tensors(path))
        except RuntimeError as error:
            raise UserError(f"{path} is of another model: {one_line(error)}") from error

    def remove_weights(self) -> None:
        """Delete the weights; the scores and units stay."""
        if self.writes:
            (self.folder / WEIGHTS).unlink(missing_ok=True)


def step_of(folder: Path) -> int | None:
    """The step after which a stage ends; None: it is not finished.

    Raises:
        UserError: When its stage.json is damaged.
    """
    path = folder / HEADER
    return int(_read_header(path)["step"]) if path.exists() else None


def _read_header(path: Path) -> dict[str, Any]:
    header = read_object(path)
    if header.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {header.get('format_version')!r}, this "
            f"program reads {FORMAT_VERSION}"
        )
    check_type(header, _Header, str(path))
    return header


def read_kept(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors that a seed keeps, and the content of the JSON file beside them.

    Raises:
        UserError: When one of them is damaged.
    """
    path = file.with_suffix(".json")
    header = read_object(path)
    check_type(header, _Kept, str(path))
    check_digest(file, header["sha256"], path)
    return read_tensors(file), header


def read_scan(path: Path) -> list[dict[str, Any]]:
    """Scores of the pruned model at every share, a row an arm.

    Raises:
        UserError: When the file is damaged.
    """
    content = read_object(path)
    check_type(content, _Scanned, str(path))
    return list(content["rows"])


def _none_to_nan(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if v is None else float(v) for name, v in scores.items()}
