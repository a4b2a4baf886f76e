"""Finished runs, read from their directories alone and checked before drawing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcut.storage.atomic import read_object
from circuitcut.storage.checksums import check_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import PROVENANCE, Provenance, differences
from circuitcut.storage.reading.typed_fields import Digest, check_entries, shown
from circuitcut.storage.results_schema import (
    ENTRIES,
    SCHEMA_VERSION,
    needed_for_report,
)
from circuitcut.storage.run_directory import RunDirectory

KIND_NAMES = {
    "train_mask": "Mask training",
    "relearn": "Relearning",
    "relearn_stages": "Relearning in stages",
    "evaluate": "Evaluation of a mask",
    "attribute": "Attribution without training",
    "import_mask": "Imported mask",
    "select_mask": "Neurons of a class",
    "knowledge": "Knowledge neurons",
    "faithfulness": "Faithfulness of circuits",
    "stability": "Stability of masks",
    "weight_classes": "Classes of neurons by weights",
    "class_effects": "Ablation of a class of neurons",
}
NO_TASK = "none"
"""Stands for the task of a run that has none."""
SIDES = ("concept", "retain")
"""Both scores of a task; a run names their metrics."""


@dataclass(frozen=True)
class Run:
    """What a finished run wrote."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    """Entries of metrics.jsonl by step."""

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.path.resolve().name

    @property
    def title(self) -> str:
        """Kind, task and model in words."""
        task, model = self.results["task"], self.results["model"]
        of_task = "" if task == NO_TASK else f"task {task}, "
        return f"{KIND_NAMES[self.kind]}: {of_task}model {model}"


def load_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: When the folder is no run, has not finished, or its results are of an
            unknown kind or lack a key.
    """
    directory = RunDirectory.open(path)
    if not directory.is_finished:
        raise UserError(
            f"run {path} has not finished (no results.json); continue it with "
            f"--resume {path}"
        )
    results = directory.results
    kind = results.get("kind")
    if kind not in ENTRIES:
        raise UserError(
            f"{path}/results.json must be of a kind from {sorted(ENTRIES)}, got "
            f"{shown(kind)}"
        )
    version = results.get("schema_version", 1)
    if version not in (1, SCHEMA_VERSION):
        raise UserError(
            f"{path}/results.json has schema version {shown(version)}, this program "
            f"reads 1 and {SCHEMA_VERSION}; use the version that wrote it"
        )
    missing = sorted(needed_for_report(kind, version) - set(results))
    if missing:
        raise UserError(
            f"{path}/results.json lacks {', '.join(missing)}; repeat the run with "
            f"--config {path}/config.json"
        )
    _check_mask(path, results)
    return Run(
        path,
        kind,
        directory.config,
        directory.environment,
        results,
        directory.metrics(),
    )


def _check_mask(path: Path, results: Mapping[str, Any]) -> None:
    """Refuse results that are those of another mask than the one beside them.

    A report needs no mask: its files may have been removed.
    """
    header_file, tensor_file = path / "mask.json", path / "mask.safetensors"
    if not header_file.exists():
        return
    header = read_object(header_file)
    types = {"provenance": Provenance | None, "sha256": Digest | None}
    check_entries(header, types, str(header_file))
    made_with = header.get("provenance") or {}
    told = {
        "n_ablated": header.get("n_ablated"),
        "n_units": header.get("n_units"),
        "task": made_with.get("task"),
    }
    found = [
        f"{name} {shown(results.get(name))} in results.json, {shown(value)} in "
        "mask.json"
        for name, value in told.items()
        if results.get(name) != value
    ]
    found = found or differences(results.get(PROVENANCE) or {}, made_with)
    if found:
        raise UserError(
            f"{header_file} is not the mask of results.json: {', '.join(found)}; "
            "restore both files"
        )
    if tensor_file.exists() and header.get("sha256") is not None:
        check_digest(tensor_file, header["sha256"], header_file)
