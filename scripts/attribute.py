"""Rank units without training and cut the top of each ranking: the baselines.

    python scripts/attribute.py --task locations --sizes 8 16 32

Every method gives a FrozenMask by exactly-k at every size, measured on held-out data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.attribution.abilities import ABILITIES
from circuitcut.experiments.defaults.of_mask import methods_of
from circuitcut.experiments.flags import UnitsConfig, units_of
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import N_BATCHES, UNITS
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class AttributeConfig(UnitsConfig):
    """Which rankings, over which units, cut at which sizes."""

    heading: ClassVar[str] = "baselines"
    headings: ClassVar[Headings] = {
        "what is cut": ("sizes", "ablation", "mean_over", "positions")
    }

    methods: list[str] = flag(
        [],
        f"rankings: {', '.join(sorted(ABILITIES))}, or all, without acdc and "
        "patching, which run the model for every unit",
    )
    sizes: list[int] = flag([8, 16, 32, 64], "numbers of units to ablate", within=UNITS)
    ablation: Literal["zero", "mean", "counterfactual"] = flag(
        "zero", "what replaces an activation"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    positions: Literal["words", "all"] | None = flag(
        None,
        "cut at every position, or not at special tokens and a causal model's first "
        "position",
    )
    n_batches: int | None = flag(
        None,
        "batches of 16 examples the scores are averaged over; default 32, of graphs "
        "above 2,000 edges 8",
        within=N_BATCHES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [m for m in self.methods if m not in ABILITIES and m != "all"]
        if wrong:
            raise UserError(f"--methods must be among {sorted(ABILITIES)}, got {wrong}")

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        units = units_of(self)
        return super().chosen() | {
            "methods": [*methods_of([], units), "random"],
            "positions": "all" if "edges" in units else "words",
        }


parse_first(__name__, AttributeConfig, __doc__)

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.describe import header
from circuitcut.experiments.freeze import untrained
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import (
    attribution_batches,
    check_pairs,
    sites_for,
)
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import new_run, save_ranking
from circuitcut.experiments.scores import attribution_ranking, cut_by, score
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.reports.tables import format_table
from circuitcut.reports.words import method_name, score_name


def main(config: AttributeConfig) -> Path:
    """Rank, cut, measure; one mask folder per method and size."""
    RunDirectory.check(config.run_dir)
    experiment = load(config)
    sites = _sites(config, experiment)
    methods = methods_of(config.methods, units_of(config))
    if not config.methods:
        methods.append("random")
    experiment = with_base_model(experiment)
    usual: Any = "all" if "edges" in units_of(config) else "words"
    flags: dict[str, Any] = {
        "methods": methods,
        "positions": config.positions or usual,
        "n_batches": attribution_batches(config.n_batches, sites),
    }
    experiment = resolved(experiment, config, **flags)
    made_with = provenance_of(experiment)
    run = new_run(experiment, config, "attribute", made_with=made_with)
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        whole = _whole(config, experiment, sites, flags["positions"])
        rows = [
            row
            for method in methods
            for row in _cuts(
                config, experiment, whole, method, run.path, flags["n_batches"]
            )
        ]
        results = header("attribute", experiment, sites, ablation=config.ablation) | {
            "scores": {"uncut": score(experiment, None).scores},
            "curve": rows,
            "next": command("report", {"runs": run.path}),
        }
        run.write_results(results)
    _show(results)
    print(f"run: {run.path}; masks in {run.path / 'masks'}")
    print(f"next: {results['next']}")
    return run.path


def _whole(
    config: AttributeConfig,
    experiment: Experiment,
    sites: tuple[Site, ...],
    positions: Any,
) -> FrozenMask:
    """The mask that ablates nothing, with the ablation values of all cuts."""
    settings = MaskSettings(
        gate="none",
        ablation=config.ablation,
        mean_over=config.mean_over,
        positions=positions,
        seed=config.seed,
    )
    return untrained(experiment, sites, settings, n_ablated=0)


def _cuts(
    config: AttributeConfig,
    experiment: Experiment,
    whole: FrozenMask,
    method: str,
    folder: Path,
    n_batches: int,
) -> list[dict[str, Any]]:
    """Cuts of every size by one ranking: saved, and measured as rows."""
    named = replace(whole, provenance={**whole.provenance, "gate": method})
    ranking = attribution_ranking(
        experiment, named, method, seed=config.seed, n_batches=n_batches
    )
    file = folder / f"{method}.ranking.safetensors"
    save_ranking(file, ranking)
    rows = []
    for size in config.sizes:
        mask = cut_by(named, ranking, size)
        mask_folder = folder / "masks" / f"{method}-{size}"
        mask_folder.mkdir(parents=True)
        mask.save(mask_folder)
        scored = vars(score(experiment, mask))
        rows.append({"method": method, "n_ablated": size, **scored})
    return rows


def _show(results: Mapping[str, Any]) -> None:
    keys = [results[f"{which}_metric"]["name"] for which in ("concept", "retain")]
    uncut = {"method": "uncut", "n_ablated": 0, "scores": results["scores"]["uncut"]}
    table = [
        {"method": method_name(row["method"]), "units ablated": row["n_ablated"]}
        | {score_name(results, k): row["scores"].get(k) for k in (*keys, "kl_retain")}
        for row in (uncut, *results["curve"])
    ]
    print(format_table(table, list(table[0])))


def _sites(config: AttributeConfig, experiment: Experiment) -> tuple[Site, ...]:
    """The sites asked for; flags that do not fit them are refused."""
    check_pairs(experiment.task, config.ablation)
    sites = sites_for(config, experiment.loaded.model)
    n_units = sum(site.n_units for site in sites)
    if max(config.sizes) > n_units:
        raise UserError(
            f"--sizes must not exceed the {n_units} units of "
            f"{' and '.join(units_of(config))}, got {max(config.sizes)}"
        )
    return sites


if __name__ == "__main__":
    run_script(main, AttributeConfig)
