"""Compare masks of several seeds: which units they share, beside random masks.

    python scripts/stability.py --masks runs/SEED0 runs/SEED1 runs/SEED2

Takes masks on the same sites of the same model. The table gives the Jaccard index of
the ablated units (of the kept ones, where the masks isolate) for every pair of masks,
its mean, and the mean at every site. Beside it stands what random masks of the same
sizes have, exactly: drawn from all units, and drawn with the same number at every site.
results.json also names the units that most of the masks share. Takes seconds; no model
is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import check_flags
from circuitcut.storage.provenance import PROVENANCE, code_version
from circuitcut.storage.run_directory import DEFAULT_PARENT, RunDirectory
from circuitcut.training.config import (
    config_dict,
    parse_first,
    run_script,
    saved_flags,
)

MOST_NAMED = 1000
SHOWN = 8


@dataclass(frozen=True)
class StabilityConfig:
    """Which masks are compared, and by which of their units."""

    heading: ClassVar[str] = "masks"
    headings: ClassVar[Headings] = {"run": ("run_dir",)}

    masks: list[Path] = flag([], "run directories (or folders) that hold a mask")
    chosen: Literal["auto", "ablated", "kept"] = flag(
        "auto",
        "which units are compared; auto: the ablated ones, or the kept ones of masks "
        "that isolate",
    )
    allow_other_weights: bool = flag(
        False, "compare masks of models of the same shape with other weights"
    )
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")

    def __post_init__(self) -> None:
        check_flags(self)
        if len(self.masks) < 2:
            raise UserError(
                f"--masks needs at least two run directories, got {len(self.masks)}; "
                "train with another --seed"
            )
        if len({path.resolve() for path in self.masks}) < len(self.masks):
            raise UserError(
                "--masks must name every run once, got "
                f"{' '.join(map(str, self.masks))}"
            )


parse_first(__name__, StabilityConfig, __doc__)

from circuitcut.experiments.saved_runs import mask_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.overlap import Chance, Overlap, Pair, mean_by_chance
from circuitcut.reports.tables import format_table, stability_rows
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.tasks.registry import TASKS


def main(config: StabilityConfig) -> Path:
    """Compare, write results.json, print the table."""
    masks = [mask_at(path) for path in config.masks]
    if not config.allow_other_weights:
        _check_one_model(config.masks, masks)
    overlap = Overlap(tuple(masks), kept=_kept(config, masks))
    RunDirectory.check(config.run_dir)
    task = str(masks[0].provenance.get("task", "none"))
    model = str(masks[0].provenance.get("model", "unknown"))
    run = RunDirectory.create(
        config.run_dir,
        kind="stability",
        task=task,
        model=model,
        config=saved_flags(config) | {PROVENANCE: _provenance(config)},
    )
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        results = _results(config, overlap, task, model)
        results["next"] = command("report", {"runs": run.path})
        run.write_results(results)
    rows = stability_rows(results)
    print(format_table(rows, list(rows[0])))
    _show_shared(results)
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _results(
    config: StabilityConfig, overlap: Overlap, task: str, model: str
) -> dict[str, Any]:
    first, pairs = overlap.masks[0], overlap.pairs()
    known = TASKS.get(task)
    n_chosen = overlap.n_chosen()
    by_masks = zip(overlap.n_units_by_masks(), overlap.expected_by_masks(), strict=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "stability",
        "task": task,
        "model": model,
        "units": sorted({site.kind for site in overlap.sites}),
        "ablation": first.ablated.kind,
        "n_ablated": None,
        "n_units": overlap.n_units,
        "concept_metric": vars(known.concept_metric) if known else None,
        "retain_metric": vars(known.retain_metric) if known else None,
        "base": {},
        "provenance": _provenance(config),
        "chosen": "kept" if overlap.kept else "ablated",
        "masks": [
            {
                "mask": str(path),
                "seed": mask.provenance.get("seed"),
                "gate": mask.provenance.get("gate"),
                "n_chosen": n,
            }
            for path, mask, n in zip(config.masks, overlap.masks, n_chosen, strict=True)
        ],
        "pairs": [_pair(pair) for pair in pairs],
        "mean": _mean(pairs),
        "per_site": _per_site(overlap),
        "by_number_of_masks": [
            {"n_masks": number, "n_units": n_units, "expected": expected}
            for number, (n_units, expected) in enumerate(by_masks)
        ],
        "shared": _shared(overlap),
    }


def _provenance(config: StabilityConfig) -> dict[str, Any]:
    return {"settings": config_dict(config), "code_version": code_version()}


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "n_shared": pair.n_shared,
        "jaccard": pair.jaccard,
        "random": _chance(pair.by_chance),
        "random_per_site": _chance(pair.by_chance_per_site),
    }


def _mean(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Means over the pairs in which at least one mask chooses a unit."""
    compared = [pair for pair in pairs if pair.jaccard is not None]
    jaccard = [pair.jaccard for pair in compared if pair.jaccard is not None]
    random = [pair.by_chance for pair in compared if pair.by_chance]
    per_site = [pair.by_chance_per_site for pair in compared if pair.by_chance_per_site]
    return {
        "n_pairs": len(compared),
        "jaccard": sum(jaccard) / len(jaccard) if jaccard else None,
        "random": _chance(mean_by_chance(random)),
        "random_per_site": _chance(mean_by_chance(per_site)),
    }


def _chance(chance: Chance | None) -> dict[str, Any] | None:
    if chance is None:
        return None
    return {"mean": chance.mean, "interval": list(chance.interval)}


def _per_site(overlap: Overlap) -> list[dict[str, Any]]:
    """One entry a site; its random masks have each mask's own number there."""
    entries = []
    for site in overlap.sites:
        mean = _mean(overlap.pairs([site]))
        entry = {
            "site": site.name,
            "kind": site.kind,
            "layer": site.layer,
            "n_units": site.n_units,
            "n_chosen": overlap.n_chosen_at(site),
            "jaccard": mean["jaccard"],
            "random": mean["random"],
        }
        entries.append(entry | ({"level": "logits"} if site.is_logits else {}))
    return entries


def _shared(overlap: Overlap) -> list[dict[str, Any]]:
    """Units that more than half of the masks choose, those of most masks first."""
    units: list[dict[str, Any]] = []
    for site in overlap.sites:
        counts = overlap.n_masks_of(site)
        if max(counts) * 2 <= len(overlap.masks):
            continue
        units += [
            {"unit": name, "kind": site.kind, "layer": site.layer, "n_masks": count}
            for name, count in zip(overlap.unit_names(site), counts, strict=True)
            if count * 2 > len(overlap.masks)
        ]
    units.sort(key=lambda unit: -unit["n_masks"])
    return units[:MOST_NAMED]


def _show_shared(results: Mapping[str, Any]) -> None:
    n_masks = len(results["masks"])
    counts = results["by_number_of_masks"][n_masks]
    names = [u["unit"] for u in results["shared"] if u["n_masks"] == n_masks][:SHOWN]
    more = counts["n_units"] - len(names)
    listed = ", ".join(names) + (f" and {more} more (results.json)" if more else "")
    print(
        f"{results['chosen']} in all {n_masks} masks: {counts['n_units']} units "
        f"(random masks: {counts['expected']:,.2f})" + (f": {listed}" if names else "")
    )


def _kept(config: StabilityConfig, masks: Sequence[FrozenMask]) -> bool:
    """Whether the kept units are compared."""
    if config.chosen != "auto":
        return config.chosen == "kept"
    directions = {mask.provenance.get("direction", "break") for mask in masks}
    if len(directions) > 1:
        raise UserError(
            "--masks must all break or all isolate, got both; say which units to "
            "compare with --chosen ablated or --chosen kept"
        )
    return directions == {"isolate"}


def _check_one_model(paths: Sequence[Path], masks: Sequence[FrozenMask]) -> None:
    first = masks[0].provenance.get("weights_hash")
    for path, mask in zip(paths, masks, strict=True):
        if mask.provenance.get("weights_hash") != first:
            raise UserError(
                f"--masks {path} is of a model with other weights than {paths[0]}, "
                "whose units cannot be compared one by one; repeat its --base_seed and "
                "--model, or give --allow_other_weights true"
            )


if __name__ == "__main__":
    run_script(main, StabilityConfig)
