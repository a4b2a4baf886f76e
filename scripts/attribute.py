"""Rank units without training and cut the top of each ranking: the baselines.

    python scripts/attribute.py --task locations --sizes 8 16 32

Every method gives a FrozenMask by exactly-k at every size, measured on held-out data.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.flags import UnitsConfig, command, flag
from circuitcut.experiments.gates import MaskSettings, ablation_values, special_ids
from circuitcut.experiments.plan import check_pairs, methods_of, sites_for, units_of
from circuitcut.experiments.scores import attribution_ranking, cut_by, provenance, score
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loading import LoadedModel
from circuitcut.models.sites import Site
from circuitcut.reports.tables import format_table
from circuitcut.scripts.train_base import prepare
from circuitcut.storage.atomic import write_tensors
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import config_dict, run_script


@dataclass(frozen=True)
class AttributeConfig(UnitsConfig):
    """Which rankings, over which units, cut at which sizes."""

    methods: list[str] = flag(
        [],
        f"rankings: {', '.join(sorted(METHODS))}, or all; default: random and "
        "gradient_margin, probeless; for edges eap, eap_ig",
    )
    sizes: list[int] = flag([8, 16, 32, 64], "numbers of units to ablate")
    ablation: Literal["zero", "mean", "counterfactual"] = flag(
        "zero", "what replaces an activation"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    positions: Literal["words", "all"] = flag(
        "words", "cut at every position (edges always) or not at special tokens"
    )
    n_batches: int = flag(32, "batches of 16 examples the scores are averaged over")

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [m for m in self.methods if m not in METHODS and m != "all"]
        if wrong:
            raise UserError(f"--methods must be among {sorted(METHODS)}, got {wrong}")
        if not self.sizes or min(self.sizes) < 1:
            raise UserError(f"--sizes must be positive, got {self.sizes}")
        if self.n_batches < 1:
            raise UserError(f"--n_batches must be positive, got {self.n_batches}")


def main(config: AttributeConfig) -> Path:
    """Rank, cut, measure; one mask folder per method and size."""
    RunDirectory.check(config.run_dir)
    experiment = prepare(config, check=partial(_sites, config))
    units, sites = units_of(config), _sites(config, experiment.loaded)
    n_units = sum(site.n_units for site in sites)
    settings = MaskSettings(
        gate="none",
        ablation=config.ablation,
        mean_over=config.mean_over,
        positions="all" if "edges" in units else config.positions,
        seed=config.seed,
    )
    run = RunDirectory.create(
        config.run_dir,
        kind="attribute",
        task=config.task,
        model=config.model_name,
        config=config_dict(config),
    )
    if not run.is_writer:  # one of several processes is enough
        return run.path
    ablated = ablation_values(experiment, sites, settings)
    methods = methods_of(config.methods, units)
    if not config.methods:
        methods.append("random")
    uncut = score(experiment, None)
    rows: list[dict[str, Any]] = []
    for method in methods:
        empty = FrozenMask.exactly_k(
            {site.name: torch.zeros(site.n_units) for site in sites},
            sites,
            ablated,
            n_ablated=0,
            special_ids=special_ids(experiment, settings),
            provenance=provenance(config, experiment, settings) | {"gate": method},
        )
        ranking = attribution_ranking(
            experiment, empty, method, seed=config.seed, n_batches=config.n_batches
        )
        write_tensors(
            run.path / f"{method}.ranking.safetensors",
            ranking,
            {"polarity": "high keeps"},
        )
        for size in config.sizes:
            mask = cut_by(empty, ranking, size)
            folder = run.path / "masks" / f"{method}-{size}"
            folder.mkdir(parents=True)
            mask.save(folder)
            scored = score(experiment, mask)
            rows.append(
                {
                    "method": method,
                    "n_ablated": size,
                    "scores": scored.scores,
                    "unseen": scored.unseen,
                    "intervals": scored.intervals,
                }
            )
    task = experiment.task
    run.write_results(
        {
            "kind": "attribute",
            "task": config.task,
            "model": config.model_name,
            "units": list(units),
            "n_units": n_units,
            "scores": {"uncut": uncut.scores},
            "curve": rows,
            "concept_metric": vars(task.concept_metric),
            "retain_metric": vars(task.retain_metric),
        }
    )
    names = [task.concept_metric.name, task.retain_metric.name, "kl_retain"]
    table = [{"method": "uncut", "n_ablated": 0} | uncut.scores]
    table += [{**row, **row["scores"]} for row in rows]
    print(format_table(table, ["method", "n_ablated", *names]))
    print(f"run: {run.path}; masks in {run.path / 'masks'}")
    print(f"next: {command('report', {'runs': run.path})}")
    return run.path


def _sites(config: AttributeConfig, loaded: LoadedModel) -> tuple[Site, ...]:
    units = units_of(config)
    methods_of(config.methods, units)
    check_pairs(config.task, config.ablation)
    sites = sites_for(config, loaded.model)
    n_units = sum(site.n_units for site in sites)
    if max(config.sizes) > n_units:
        raise UserError(
            f"--sizes must not exceed the {n_units} units of {' and '.join(units)}, "
            f"got {max(config.sizes)}"
        )
    return sites


if __name__ == "__main__":
    run_script(main, AttributeConfig)
