"""What earlier runs left: masks, rankings, and the flags and settings they had."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_type_hints

from torch import Tensor

from circuitcut.experiments.defaults.of_mask import settings_of
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import before_budgets
from circuitcut.experiments.settings import MaskSettings, saved_settings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_files import (
    HEADER_FILE,
    TENSOR_FILE,
    check_model,
    read_header,
)
from circuitcut.storage.atomic import (
    read_object,
    read_tensors,
    write_json,
    write_tensors,
)
from circuitcut.storage.checksums import check_digest, file_digest
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import PROVENANCE, differences
from circuitcut.storage.reading.typed_fields import Count, Digest, check_type, shown
from circuitcut.storage.run_directory import (
    RunDirectory,
    has_lost_config,
    is_run,
    read_config,
    run_holding,
)
from circuitcut.training.config import (
    NONE,
    RESOLVED,
    as_given,
    check_saved,
    has_choice_none,
    saved_flags,
)

RANKING_FILE = "ranking.safetensors"
Config = TypeVar("Config", bound=TaskConfig)
_OF_THIS_RUN = {"seed", "device", "run_dir", "mixed_precision"}
"""Flags that are never taken from another run."""


def mask_at(path: Path) -> FrozenMask:
    """The mask in the folder `path`, not yet checked against a model.

    Raises:
        UserError: When there is none, telling by what lies there what to do, or when it
            is damaged.
    """
    if (path / HEADER_FILE).exists():
        return FrozenMask.load(path)
    kind = None
    if is_run(path):
        run = RunDirectory.open(path)
        run.check_has_mask()
        kind = run.kind
    if kind == "train_mask":
        continued = command("train_mask", {"resume": path})
        raise UserError(f"--mask {path} has not finished; continue it with {continued}")
    there = f"{kind} run" if kind else "folder" if path.is_dir() else "missing folder"
    raise UserError(
        f"--mask must be a train_mask run or another folder with mask.json, got {there}"
        f" {path}"
    )


def selection_of(path: Path) -> dict[str, Any] | None:
    """Which neurons a select_mask run chose, as its results.json says; else None."""
    if not is_run(path):
        return None
    run = RunDirectory.open(path)
    if run.kind != "select_mask" or not run.is_finished:
        return None
    selection: dict[str, Any] = run.results["selection"]
    return selection


def check_fit(
    mask: FrozenMask,
    path: Path,
    experiment: Experiment,
    allow_other_weights: bool = False,
) -> None:
    """Refuse a mask that is for another model than the experiment's.

    Args:
        path: Where the mask lies, for the message.

    Raises:
        UserError: Naming every difference.
    """
    check_model(
        mask.sites,
        mask.provenance,
        path,
        experiment.loaded.model,
        config_hash=experiment.loaded.config_hash,
        allow_other_weights=allow_other_weights,
    )


def with_flags_of_run(config: Config, path: Path) -> Config:
    """`config` with the task flags of a mask wherever no flag was given.

    They stand in the `config.json` of its run, else in the provenance of `mask.json`.

    Args:
        path: The run directory or folder of the mask.

    Raises:
        UserError: When `config.json` is missing or empty, is of another run than the
            mask, or nothing tells the task of the mask.
    """
    saved = _flags_at(path)
    default = type(config)()
    deciding = [f.name for f in fields(TaskConfig) if f.metadata["decides_defaults"]]
    given = {f.name for f in fields(TaskConfig) if _is_given(config, default, f.name)}
    flags = typed_flags(TaskConfig, saved)
    if any(getattr(config, n) != flags.get(n) for n in given.intersection(deciding)):
        flags = typed_flags(TaskConfig, as_given(saved))
    taken = {
        name: value
        for name, value in flags.items()
        if name not in _OF_THIS_RUN and name not in given
    }
    return replace(config, **taken)


def task_flags_at(path: Path) -> dict[str, Any]:
    """The task flags that a mask was made with, by name; see `with_flags_of_run`."""
    saved = _flags_at(path)
    return typed_flags(TaskConfig, saved)


def _is_given(config: TaskConfig, default: TaskConfig, name: str) -> bool:
    return bool(getattr(config, name) != getattr(default, name))


def _flags_at(path: Path) -> dict[str, Any]:
    """The flags that a mask was made with, checked as those of a task.

    Raises:
        UserError: See `with_flags_of_run`.
    """
    if has_lost_config(path):
        raise UserError(
            f"{path} has no config.json, which names task, model and data of the run; "
            "restore it"
        )
    made_with: dict[str, Any] = {}
    if (path / HEADER_FILE).exists():
        made_with = read_header(path)["provenance"]
    run = path if (path / "config.json").exists() else run_holding(path)
    if run is None:
        saved = _flags_of_mask(path, made_with)
        check_saved(TaskConfig, saved, path / HEADER_FILE)
        return saved
    saved = read_config(run)
    found = differences(saved.get(PROVENANCE) or {}, made_with)
    task = made_with.get("task")
    if not found and task is not None and "task" in saved and task != saved["task"]:
        found = [f"task ({saved['task']} before, {task} now)"]
    if found:
        raise UserError(
            f"{path / HEADER_FILE} is not the mask of {run / 'config.json'}: it was "
            f"made with other {', '.join(found)}; restore both files"
        )
    check_saved(TaskConfig, saved, run / "config.json")
    return saved


def _flags_of_mask(path: Path, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in the provenance of a mask that lies in no run directory."""
    settings = made_with.get("settings")
    if settings is None and "task" in made_with:
        raise UserError(
            f"{path} has no config.json, and its mask.json names the task "
            f"{made_with['task']} without its model and data; name the run directory"
        )
    return dict(settings or {})


def settings_of_run(path: Path, n_units: int) -> MaskSettings:
    """The settings that the mask run at `path` was trained with.

    Args:
        n_units: Of its mask; runs before December 2026 kept their flags alone, which
            are resolved anew.
    """
    saved = saved_settings(path)
    if saved is not None:
        return saved
    flags = read_config(path)
    check_saved(MaskConfig, flags, path / "config.json")
    flags = typed_flags(MaskConfig, flags)
    return settings_of(before_budgets(MaskConfig(**flags)), n_units)


def ranking_of_run(folder: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """The ranking that a mask-training run kept; the highest are kept longest.

    Raises:
        UserError: When the folder has none, or its sites are not the mask's.
    """
    path = folder / RANKING_FILE
    if not path.exists():
        raise UserError(f"{folder} has no {RANKING_FILE}; --sizes needs one")
    ranking, of_mask = checked_ranking(path, mask), _header_of(path).get("mask_sha256")
    here = read_header(folder)["sha256"]
    if None not in (of_mask, here) and of_mask != here:
        raise UserError(
            f"{path} is the ranking of another mask than {folder / TENSOR_FILE}; "
            "restore it"
        )
    return ranking


def checked_ranking(path: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """A ranking of the units of `mask`; the highest are kept longest.

    Raises:
        UserError: When it is not there or damaged, or its sites are not the mask's.
    """
    ranking = read_tensors(path)
    for name, values in ranking.items():
        if values.dim() != 1 or not values.is_floating_point() or values.isnan().any():
            raise UserError(
                f"{path} must hold a vector of numbers for every site, got "
                f"{values.dtype} of shape {tuple(values.shape)} at {shown(name)}"
            )
    check_digest(path, _header_of(path).get("sha256"), path.with_suffix(".json"))
    sizes = {site.name: site.n_units for site in mask.sites}
    if {name: len(values) for name, values in ranking.items()} != sizes:
        raise UserError(f"{path} does not rank the units of this mask")
    return ranking


def save_frozen(
    mask: FrozenMask, ranking: Mapping[str, Tensor] | None, folder: Path
) -> None:
    """Write a finished mask, and the ranking that gives it, into a run directory."""
    mask.save(folder)
    if ranking is not None:
        digest = read_header(folder)["sha256"]
        save_ranking(folder / RANKING_FILE, ranking, mask_sha256=digest)


def save_ranking(
    file: Path, ranking: Mapping[str, Tensor], *, mask_sha256: str | None = None
) -> None:
    """Write scores by site name, of which the highest are kept.

    The JSON file of the same name gets the SHA-256 and the number of units of each
    site, and the SHA-256 of the tensors of the mask that it gives, if there is one.
    """
    write_tensors(file, ranking, {"polarity": "high keeps"})
    header = {
        "polarity": "high keeps",
        "n_units": {name: len(values) for name, values in ranking.items()},
        "sha256": file_digest(file),
    }
    if mask_sha256 is not None:
        header["mask_sha256"] = mask_sha256
    write_json(file.with_suffix(".json"), header)


def _header_of(file: Path) -> dict[str, Any]:
    """The JSON file of a ranking; empty where an older version wrote none."""
    path = file.with_suffix(".json")
    header = read_object(path) if path.exists() else {}
    check_type(header, _RankingHeader, str(path))
    return header


class _RankingHeader(TypedDict, total=False):
    """Entries of the JSON file of a ranking."""

    polarity: Literal["high keeps"]
    n_units: dict[str, Count]
    sha256: Digest
    mask_sha256: Digest


def new_run(
    experiment: Experiment,
    given: TaskConfig,
    kind: str,
    *,
    name: Path | None = None,
    made_with: Mapping[str, Any],
    files: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """A new run directory, with its resolved flags and its provenance.

    Args:
        experiment: Its config has the resolved flags.
        given: The flags as they were given.
        name: Of the directory; None: generated.
        made_with: See `load.provenance_of`.
        files: Further JSON files that the run begins with.
    """
    config = experiment.config
    chosen = [
        f.name
        for f in fields(config)
        if getattr(given, f.name) != getattr(config, f.name)
    ]
    return RunDirectory.create(
        config.run_dir,
        kind=kind,
        task=config.task,
        model=config.model_name,
        config=saved_flags(config) | {RESOLVED: chosen, PROVENANCE: made_with},
        name=name,
        files=files,
    )


def typed_flags(config_class: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that are fields of `config_class`, with its types.

    The word `none` is no value, unless it is one of the choices.
    """
    hints = get_type_hints(config_class)
    typed = {}
    for name in (f.name for f in fields(config_class) if f.name in saved):
        value, hint = saved[name], hints[name]
        parts = get_args(hint)
        is_none = value == NONE and NoneType in parts and not has_choice_none(hint)
        if is_none or value is None:
            value = None
        elif isinstance(value, list) and Path in parts:
            value = [Path(item) for item in value]
        elif hint is Path or Path in parts:
            value = Path(value)
        typed[name] = value
    return typed
