"""The flags of a run with every default value filled in, and what else it is made with.

A run directory keeps both, so that it can be repeated after the default settings have
changed.
"""

import math
from dataclasses import asdict, fields, replace
from typing import Any

from circuitcut.experiments.flags import (
    TaskConfig,
    UnitsConfig,
    base_recipe,
    units_of,
)
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import Plan
from circuitcut.experiments.settings import MaskSettings
from circuitcut.relearning.protocol import mask_hash
from circuitcut.training.config import NONE


def resolved(experiment: Experiment, config: TaskConfig, **values: Any) -> Experiment:
    """The experiment, whose config is `config` with the defaults that were taken.

    Args:
        config: The script's flags.
        values: Further flags that the script has resolved.
    """
    changes: dict[str, Any] = {
        "model": config.model_name,
        "concept": config.concept or experiment.task.concept,
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
    if config.languages:
        changes["language"] = list(config.languages)
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
    values["attribution_batches"] = planned.attribution_batches
    if math.isfinite(planned.size.retain_kl):
        values["retain_kl"] = planned.size.retain_kl
    return resolved(experiment, config, **values)


def hashes_of(planned: Plan) -> dict[str, str]:
    """The hash of the mask that a training is confined to, if it is."""
    if planned.superset is None:
        return {}
    return {"superset_sha256": mask_hash(planned.superset)}


def _revision(experiment: Experiment) -> str | None:
    """The commit of a hub model; None for a local one, whose weights are hashed."""
    revision = experiment.loaded.revision or experiment.base.get("revision")
    is_commit = revision is not None and not revision.startswith("sha256:")
    return revision if is_commit else experiment.config.revision
