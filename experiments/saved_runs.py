"""What earlier runs left: masks, rankings, and the flags and settings they had."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from circuitcut.experiments.defaults.of_mask import settings_of
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import before_budgets
from circuitcut.experiments.settings import MaskSettings, saved_settings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_files import check_model
from circuitcut.storage.atomic import read_json, read_tensors, write_tensors
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory, is_run
from circuitcut.training.config import config_dict

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
    if (path / "mask.json").exists():
        return FrozenMask.load(path)
    kind = read_json(path / "config.json").get("kind") if is_run(path) else None
    if kind == "train_mask":
        raise UserError(
            f"--mask {path} has not finished; continue it with python "
            f"scripts/train_mask.py --resume {path}"
        )
    there = f"{kind} run" if kind else "folder" if path.is_dir() else "missing folder"
    raise UserError(
        f"--mask must be a train_mask run or another folder with mask.json, got {there}"
        f" {path}"
    )


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
    """`config` with the task flags of the run at `path` wherever no flag was given."""
    file = path / "config.json"
    if not file.exists():
        return config
    saved = read_json(file)
    default = type(config)()
    taken = {
        name: value
        for name, value in _typed(TaskConfig, saved).items()
        if name not in _OF_THIS_RUN and getattr(config, name) == getattr(default, name)
    }
    return replace(config, **taken)


def settings_of_run(path: Path, n_units: int) -> MaskSettings:
    """The settings that the mask run at `path` was trained with.

    Args:
        n_units: Of its mask; runs before December 2026 kept their flags alone, which
            are resolved anew.
    """
    saved = saved_settings(path)
    if saved is not None:
        return saved
    flags = _typed(MaskConfig, read_json(path / "config.json"))
    return settings_of(before_budgets(MaskConfig(**flags)), n_units)


def ranking_of_run(folder: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """The ranking that a mask-training run kept; the highest are kept longest.

    Raises:
        UserError: When the folder has none, or its sites are not the mask's.
    """
    path = folder / RANKING_FILE
    if not path.exists():
        raise UserError(f"{folder} has no {RANKING_FILE}; --sizes needs one")
    return checked_ranking(path, mask)


def checked_ranking(path: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """A ranking of the units of `mask`; the highest are kept longest.

    Raises:
        UserError: When it is not there, or its sites are not the mask's.
    """
    ranking = read_tensors(path)
    sizes = {site.name: site.n_units for site in mask.sites}
    if {name: len(values) for name, values in ranking.items()} != sizes:
        raise UserError(f"{path} does not rank the units of this mask")
    return ranking


def save_frozen(frozen: Frozen, folder: Path) -> None:
    """Write a finished mask and the ranking that gives it into a run directory."""
    frozen.mask.save(folder)
    save_ranking(folder / RANKING_FILE, frozen.ranking)


def save_ranking(file: Path, ranking: Mapping[str, Tensor]) -> None:
    """Write scores by site name, of which the highest are kept."""
    write_tensors(file, ranking, {"polarity": "high keeps"})


def new_run(config: TaskConfig, kind: str, name: Path | None = None) -> RunDirectory:
    """A new run directory for these flags.

    Args:
        name: Of the directory; None: generated.
    """
    return RunDirectory.create(
        config.run_dir,
        kind=kind,
        task=config.task,
        model=config.model_name,
        config=config_dict(config),
        name=name,
    )


def _typed(config_class: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that are fields of `config_class`, paths as such."""
    paths = {f.name for f in fields(config_class) if "Path" in str(f.type)}
    return {
        name: Path(saved[name]) if name in paths and saved[name] else saved[name]
        for name in (f.name for f in fields(config_class))
        if name in saved
    }
