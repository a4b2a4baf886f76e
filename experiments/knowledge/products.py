"""What found units become: a mask for other scripts, and a changed checkpoint."""

from collections.abc import Collection

import torch

from circuitcut.attribution.knowledge.operations import ENHANCED, erase_, scale_
from circuitcut.attribution.knowledge.unit_sets import Unit, most_common
from circuitcut.experiments.freeze import provenance
from circuitcut.experiments.gate_training import ablation_values, special_ids
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.results import relations
from circuitcut.experiments.knowledge.study import Study
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError


def check_size(config: KnowledgeFlags, experiment: Experiment) -> None:
    """Refuse, before any search, a mask of more neurons than there are.

    Raises:
        UserError: With the number of neurons of the model.
    """
    n = sum(site.n_units for site in sites_of(experiment.loaded.model, ["neurons"]))
    if config.n_ablated is not None and config.n_ablated >= n:
        raise UserError(
            f"--n_ablated must be below the {n:,} neurons of {config.model_name}, got "
            f"{config.n_ablated:,}"
        )


def chosen_units(study: Study) -> list[Unit]:
    """The units of the mask, or of the checkpoint: of all facts or all relations.

    Those of the most facts come first, of equal ones those of the most prompts.

    Raises:
        UserError: When there are none, or fewer than `--n_ablated`.
    """
    config = study.config
    sets = list(study.refined_sets.values())
    if config.to_mask == "relations":
        sets = list(relations(study).values())
    n_found = len(frozenset().union(*sets))
    n = config.n_ablated or n_found
    if not 0 < n <= n_found:
        (rule,) = config.rule
        raise UserError(
            f"--to_mask and --bake need units, got {n_found}"
            f"{f' for --n_ablated {n}' if n else ''}; choose more with a lower "
            f"--{rule} or --refine_share"
        )
    of_prompts = [units for sets_ in study.coarse_sets.values() for units in sets_]
    return most_common(sets, n, of_prompts)


def mask_of(
    config: KnowledgeFlags, experiment: Experiment, units: Collection[Unit]
) -> FrozenMask:
    """The mask that ablates these units."""
    sites = sites_of(experiment.loaded.model, ["neurons"])
    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in sites}
    for layer, number in units:
        keep[sites[layer].name][number] = False
    settings = MaskSettings(
        gate="none",
        direction="break",
        ablation=config.ablation,
        mean_over=config.mean_over,
        positions=config.positions,
        seed=config.seed,
    )
    return FrozenMask(
        keep,
        sites,
        ablation_values(experiment, sites, settings),
        special_ids(experiment, settings),
        provenance(experiment, settings),
    )


def bake_(
    config: KnowledgeFlags, experiment: Experiment, units: Collection[Unit]
) -> None:
    """Write `--bake` into the model for good.

    Raises:
        UserError: When the tokenizer has no unknown token for `erase_unk`.
    """
    model, tokenizer = experiment.loaded.model, experiment.loaded.tokenizer
    if config.bake == "enhance":
        scale_(model, units, ENHANCED)
    elif config.bake == "suppress":
        erase_(model, units)
    else:
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None:
            raise UserError(
                "--bake erase_unk needs a tokenizer with an unknown token, got none; "
                "use suppress, whose values are 0"
            )
        erase_(model, units, unknown)
