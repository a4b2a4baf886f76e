"""A mask trained on the hidden units of a model as it stands: the second opinion."""

from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.attribution.words.registry import joined
from circuitcut.experiments.defaults.of_mask import settings_of
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import train_gates
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.settings import MaskSettings
from circuitcut.experiments.stages.flags import StagesConfig
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site, split_by_site


def mask_settings(config: StagesConfig, n_units: int) -> MaskSettings:
    """The task's recipe on hidden units, for all shares of the study."""
    flags: dict[str, Any] = {
        f.name: getattr(config, f.name) for f in fields(TaskConfig)
    }
    recipe = settings_of(
        MaskConfig(**flags, units=["hidden"], ablation="zero"), n_units
    )
    sizes = [share * n_units for share in config.shares]
    return replace(
        recipe,
        k_min=max(1.0, min(sizes)),
        k_max=max(2.0, min(max(sizes), n_units - 1.0)),
        n_steps=config.mask_steps or recipe.n_steps,
        seed=config.seed,
    )


def learned_scores(
    experiment: Experiment,
    model: nn.Module,
    sites: tuple[Site, ...],
    settings: MaskSettings,
    left_out: Bool[Tensor, "unit"] | None = None,
) -> Float[Tensor, "unit"]:
    """Scores of all units by a trained mask: the higher, the earlier ablated.

    Args:
        model: As it stands, with whatever mask is on.
        left_out: Constant units, which get no gate and the lowest score.
    """
    n_units = sum(site.n_units for site in sites)
    out = torch.zeros(n_units, dtype=torch.bool) if left_out is None else left_out
    ablated = zero_values(sites)
    n_gated = n_units - int(out.sum())
    k_max = min(settings.k_max, n_gated - 1.0)
    settings = replace(settings, k_max=k_max, k_min=min(settings.k_min, k_max))
    # only what the superset ablates gets a gate
    superset = FrozenMask(split_by_site(out, sites), sites, ablated)
    moved = replace(experiment, loaded=replace(experiment.loaded, model=model))
    gates = train_gates(
        moved,
        sites,
        ablated,
        settings,
        superset=superset if bool(out.any()) else None,
        watch=GateWatch(progress="mask on hidden units"),
    )
    scores = -joined(gates.split(gates.ranking().detach().cpu()), sites)
    finite = torch.where(scores.isfinite(), scores, torch.inf).amin()
    return torch.where(out | ~scores.isfinite(), finite - 1, scores)
