"""Values of single units at every stage of an arm, read from the records of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitcut.reports.load import Run
from circuitcut.reports.stages.arms import Names, names
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
    n_units = sum(level["n_units"] for level in run.results["levels"])
    folder = run.path / "seeds" / f"seed-{seed}"
    named = [e for e in run.results["arms"] if names(e) == arm and e["seed"] == seed]
    stages = {
        row["stage"]
        for row in run.results["stages"]
        if row["stage"] is not None and names(row) == arm
    }
    folders: dict[int | None, Path] = {None: folder / "base"}
    for stage in sorted(stages):
        of_arm = folder / "arms" / Path(named[0]["folder"]).name
        folders[stage] = of_arm / f"stage-{stage}"
    files = [f / name for f in folders.values() for name in (HEADER, UNITS)]
    if not all(file.exists() for file in files):
        return []
    return [_values(stage, folder, n_units) for stage, folder in folders.items()]


def _values(stage: int | None, folder: Path, n_units: int) -> UnitValues:
    header, file = folder / HEADER, folder / UNITS
    content = read_object(header)
    check_entries(content, {"sha256": dict[str, Digest]}, str(header))
    check_digest(file, (content.get("sha256") or {}).get(UNITS), header)
    tensors = read_tensors(file)
    saliency = _column(tensors.get("saliency"), "saliency", n_units, file)
    similarity = np.full(n_units, np.nan)  # the base model's record has none
    if "similarity" in tensors:
        similarity = _column(tensors["similarity"], "similarity", n_units, file)
    return UnitValues(stage, saliency, similarity)


def _column(tensor: Any, name: str, n_units: int, file: Path) -> Values:
    """A tensor by unit as numbers."""
    shape = None if tensor is None else tuple(tensor.shape)
    if shape != (n_units,) or not tensor.is_floating_point():
        raise UserError(
            f"{file} must have {name}, floating-point numbers of shape ({n_units},), "
            f"as many units as results.json, got {shape or 'none'}; restore the file"
        )
    values: Values = tensor.double().numpy()
    return values
