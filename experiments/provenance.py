"""The flags of a run with every default value filled in, and what else it is made with.

A run directory keeps both, so that it can be repeated and continued after the default
settings have changed, and a run that would mix two sets of inputs is refused.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from circuitcut.experiments.flags import TaskConfig, UnitsConfig
from circuitcut.experiments.load import (
    OF_THE_PLACE,
    Experiment,
    base_recipe,
    settings_in,
)
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import Plan, units_of
from circuitcut.experiments.settings import MaskSettings
from circuitcut.relearning.protocol import mask_hash
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import PROVENANCE, differences, setting_differences
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.base import Corpus
from circuitcut.training.config import NONE, config_dict

_log = logging.getLogger(__name__)


def resolved(experiment: Experiment, config: TaskConfig, **values: Any) -> Experiment:
    """The experiment, whose config is `config` with the defaults that were taken.

    Args:
        config: The script's flags.
        values: Further flags that the script has resolved.
    """
    changes: dict[str, Any] = {
        "model": config.model_name,
        "n_heldout": experiment.task.n_heldout,
        "revision": _revision(experiment),
    }
    if experiment.base:
        recipe = asdict(base_recipe(config))
        changes |= {"base_steps": recipe["n_steps"], "base_lr": recipe["lr"]}
        changes["base_recipe"] = [
            f"{name}={NONE if value is None else value}"
            for name, value in recipe.items()
        ]
    if isinstance(config, UnitsConfig):
        changes["units"] = list(units_of(config))
    return replace(experiment, config=replace(config, **changes | values))


def with_plan(experiment: Experiment, config: MaskConfig, planned: Plan) -> Experiment:
    """`resolved` for a mask training, whose plan has the settings."""
    settings = planned.settings
    values = {
        f.name: getattr(settings, f.name)
        for f in fields(MaskSettings)
        if hasattr(config, f.name)
    }
    for name in ("k_min", "k_max"):
        if values[name] < 1:  # a flag below 1 is a share of all units
            values[name] /= planned.n_units
    values["attribution"] = list(planned.methods) or [NONE]
    return resolved(experiment, config, **values)


def provenance_of(experiment: Experiment, **hashes: str) -> dict[str, Any]:
    """What a run is made with, as config.json, results.json and checkpoints keep it.

    Args:
        experiment: As `resolved` gives it.
        hashes: Of further inputs, for instance `mask_sha256`.
    """
    return {"settings": settings_in(experiment), **experiment.origin, **hashes}


def hashes_of(planned: Plan) -> dict[str, str]:
    """The hash of the mask that a training is confined to, if it is."""
    if planned.superset is None:
        return {}
    return {"superset_sha256": mask_hash(planned.superset)}


def check_flags(config: TaskConfig, run: RunDirectory) -> None:
    """Refuse to continue a run with other flags than its own.

    Raises:
        UserError: Naming every flag that differs.
    """
    saved, now = (
        {
            name: NONE if value is None else value
            for name, value in flags.items()
            if name not in OF_THE_PLACE
        }
        for flags in (run.config, config_dict(config))
    )
    if found := setting_differences(saved, now):
        raise UserError(
            f"--resume {run.path} continues the run with its own flags, got others: "
            f"{', '.join(found)}; leave them out, or start a new run"
        )


def data_check(run: RunDirectory | None) -> Callable[[Corpus], None]:
    """What refuses data that have changed since a run began.

    Args:
        run: The run that goes on; None: a new one, which takes any data.
    """

    def check(corpus: Corpus) -> None:
        if run is not None:
            _check_inputs(run, {"data_sha256": corpus.fingerprint()})

    return check


def begun(
    run: RunDirectory | None, made_with: Mapping[str, Any]
) -> RunDirectory | None:
    """The run that goes on, unless its inputs have changed since; None for a new one.

    Args:
        made_with: The provenance of what would go on.

    Raises:
        UserError: Naming what differs.
    """
    if run is not None:
        _check_inputs(run, made_with)
        before = (run.config.get(PROVENANCE) or {}).get("code_version")
        if before is None:
            _log.info("%s has no provenance: its inputs are not checked", run.path)
        elif before != made_with["code_version"]:
            _log.info(
                "%s was begun by code %s, this is %s: numbers may differ",
                run.path,
                before,
                made_with["code_version"],
            )
    return run


def _check_inputs(run: RunDirectory, now: Mapping[str, Any]) -> None:
    if found := differences(run.config.get(PROVENANCE) or {}, now):
        raise UserError(
            f"--resume {run.path} needs the inputs that the run began with; changed: "
            f"{', '.join(found)}; restore them, or start a new run"
        )


def _revision(experiment: Experiment) -> str | None:
    """The commit of a hub model; None for a local one, whose weights are hashed."""
    revision = experiment.loaded.revision or experiment.base.get("revision")
    is_commit = revision is not None and not revision.startswith("sha256:")
    return revision if is_commit else experiment.config.revision
