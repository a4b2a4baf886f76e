"""Values of single units at every stage of an arm, read from the records of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitcut.reports.load import Run
from circuitcut.reports.stages.arms import Names, arm_folder
from circuitcut.storage.atomic import read_object, read_tensors
from circuitcut.storage.checksums import check_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import Digest, check_entries

HEADER, UNITS = "stage.json", "units.safetensors"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class UnitValues:
    """The units of all levels side by side, level 0 first, at one stage."""

    stage: int | None
    """None: the base model; 0: right after pruning."""
    saliency: Values
    """(unit,); NaN: constant, or no word with a letter."""
    similarity: Values
    """(unit,), to the base model's words; NaN: the same words, or none."""


def unit_values(run: Run, seed: int, arm: Names) -> list[UnitValues]:
    """The base model and every stage of an arm; empty where records were removed.

    Raises:
        UserError: When a record is damaged, or has another number of units than
            results.json says.
    """
    folder = run.path / "seeds" / f"seed-{seed}"
    stages = sorted(
        {
            row["stage"]
            for row in run.results["stages"]
            if row["stage"] is not None
            and (row["condition"], row["holding"]) == arm[1:]
        }
    )
    folders: dict[int | None, Path] = {None: folder / "base"}
    for stage in stages:
        folders[stage] = folder / "arms" / arm_folder(arm) / f"stage-{stage}"
    if not all(
        (f / HEADER).exists() and (f / UNITS).exists() for f in folders.values()
    ):
        return []
    n_units = run.results["n_units"]
    return [_values(stage, folder, n_units) for stage, folder in folders.items()]


def _values(stage: int | None, folder: Path, n_units: int) -> UnitValues:
    header, file = folder / HEADER, folder / UNITS
    content = read_object(header)
    check_entries(content, {"sha256": dict[str, Digest]}, str(header))
    check_digest(file, (content.get("sha256") or {}).get(UNITS), header)
    tensors = read_tensors(file)
    return UnitValues(
        stage,
        _column(tensors, "saliency", n_units, file),
        _column(tensors, "similarity", n_units, file),
    )


def _column(tensors: dict[str, Any], name: str, n_units: int, file: Path) -> Values:
    """A tensor by unit as numbers, all NaN where the record lacks it."""
    if name not in tensors:
        return np.full(n_units, np.nan)
    if tuple(tensors[name].shape) != (n_units,):
        raise UserError(
            f"{file} must have {name} of shape ({n_units},), as many units as "
            f"results.json, got {tuple(tensors[name].shape)}; restore the file"
        )
    values: Values = tensors[name].double().numpy()
    return values
