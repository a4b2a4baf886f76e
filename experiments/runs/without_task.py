"""Runs of scripts that need no task: their directory, and how results.json begins."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from circuitcut.experiments.load import deciding
from circuitcut.storage.provenance import PROVENANCE, code_version
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import config_dict, saved_flags

NO_TASK = "none"


class Flags(Protocol):
    """What is asked of a script's flags."""

    @property
    def model(self) -> str:
        """The model by the name that was given."""

    @property
    def run_dir(self) -> Path:
        """Parent folder of the run directories."""

    @property
    def name(self) -> Path | None:
        """Name of the run directory; None: generated."""


def made_with(config: Flags, revision: str | None, **hashes: str) -> dict[str, Any]:
    """The provenance of a run.

    Args:
        revision: Of the model, as it was loaded.
        hashes: Of its inputs, for instance `data_sha256`.
    """
    return {
        "settings": deciding(config_dict(config)),
        "code_version": code_version(),
        "revision": revision,
        **hashes,
    }


def begin(
    config: Flags, kind: str, label: str, provenance: dict[str, Any]
) -> RunDirectory:
    """A new run directory with the flags and the provenance.

    Args:
        label: First part of a generated name.
    """
    return RunDirectory.create(
        config.run_dir,
        kind=kind,
        task=label,
        model=config.model,
        config=saved_flags(config) | {PROVENANCE: provenance},
        name=config.name,
    )


def header(
    config: Flags,
    kind: str,
    provenance: dict[str, Any],
    *,
    units: Sequence[str] = ("neurons",),
    ablation: str | None = None,
    n_ablated: int | None = None,
    n_units: int | None,
) -> dict[str, Any]:
    """What results.json begins with, as in `describe.header`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "task": NO_TASK,
        "model": config.model,
        "units": list(units),
        "ablation": ablation,
        "n_ablated": n_ablated,
        "n_units": n_units,
        "concept_metric": None,
        "retain_metric": None,
        "base": {},
        PROVENANCE: provenance,
    }
