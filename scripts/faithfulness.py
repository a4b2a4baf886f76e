"""How faithful circuits of every size are: learned rankings, attribution and random.

    python scripts/faithfulness.py --mask runs/RUN

Keeps the top shares of each ranking and ablates the rest, on held-out examples of the
concept: how much of the concept's margin stays (f), the task's score, KL to the uncut
model and, for learned rankings, the same with the circuit ablated and the rest kept.
CPR and CMD are the areas under f and under |1 - f|, as in the MIB benchmark; the area
under the task's score is reported beside them. A soft top-k run
(`train_mask.py --direction isolate`) ranks every unit, so one training serves all
sizes.

    python scripts/faithfulness.py --task ioi --model smollm2 --n_heldout 200
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.attribution.abilities import ABILITIES
from circuitcut.attribution.faithfulness import FRACTIONS
from circuitcut.experiments.defaults.of_mask import methods_of
from circuitcut.experiments.flags import TaskConfig, UnitsConfig, units_of
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import N_BATCHES, N_RANDOM, POSITIVE_SHARE
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.settings.options import SPLITS
from circuitcut.tasks.settings.registry import DEFAULTS
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class FaithfulnessConfig(UnitsConfig):
    """Which rankings, and how much of each is kept."""

    heading: ClassVar[str] = "circuits"
    headings: ClassVar[Headings] = {"what is cut": ("ablation",)}

    mask: list[Path] = flag(
        [],
        "train_mask runs whose rankings are measured; they give the task's flags",
        decides_defaults=True,
    )
    methods: list[str] = flag(
        [],
        f"attribution rankings: {', '.join(sorted(ABILITIES))}, all (without acdc and "
        "patching, which run the model for every unit), or none",
    )
    ablation: Literal["zero", "mean", "counterfactual"] | None = flag(
        None,
        "without --mask, what replaces what is ablated; default: counterfactual, or "
        "mean where the task has no paired inputs",
    )
    fractions: list[float] = flag(
        list(FRACTIONS),
        "shares of the units kept, rising",
        within=POSITIVE_SHARE,
    )
    count: Literal["units", "mib"] = flag(
        "units",
        "what the shares count: our units, or edges as MIB does, with separate q, k "
        "and v of every query head",
    )
    complements: Literal["all", "learned", "none"] = flag(
        "learned", "rankings of which the model without the circuit is measured too"
    )
    split: str = flag("heldout", f"one of {', '.join(SPLITS)}")
    n_batches: int | None = flag(
        None,
        "batches of 16 examples the scores are averaged over; default 32, of graphs "
        "above 2,000 edges 8",
        within=N_BATCHES,
    )
    n_random: int = flag(3, "random rankings", within=N_RANDOM)
    allow_other_data: bool = flag(
        False, "measure the masks on data that have changed since they were made"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.fractions
        if len(shares) < 2 or shares != sorted(shares):
            raise UserError(f"--fractions must be two or more and rise, got {shares}")
        if self.split not in SPLITS:
            raise UserError(
                f"--split must be one of {list(SPLITS)}, got {self.split!r}"
            )
        wrong = [m for m in self.methods if m not in (*ABILITIES, "all", "none")]
        if wrong:
            raise UserError(f"--methods must be among {sorted(ABILITIES)}, got {wrong}")
        of_mask = [f.name for f in fields(UnitsConfig)[len(fields(TaskConfig)) :]]
        default = UnitsConfig()
        given = [n for n in of_mask if getattr(self, n) != getattr(default, n)]
        if self.mask and (given or self.ablation):
            names = [f"--{name}" for name in given or ["ablation"]]
            raise UserError(
                f"{' and '.join(names)}: beside --mask they are its own; leave them out"
            )

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        units = self.units or ["edges"]
        has_pairs = DEFAULTS[self.task].has_pairs
        return super().chosen() | {
            "units": units,
            "methods": [*methods_of([], units), "random"],
            "ablation": "counterfactual" if has_pairs else "mean",
        }


parse_first(__name__, FaithfulnessConfig, __doc__)

from torch import Tensor

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.circuits.faithfulness import (
    Rankers,
    measured,
    nothing_kept,
    rankings,
)
from circuitcut.experiments.freeze import untrained
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import (
    attribution_batches,
    check_pairs,
    sites_for,
)
from circuitcut.experiments.runs.data_of_mask import other_data_warning, same_data
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import (
    check_fit,
    mask_at,
    new_run,
    ranking_of_run,
    with_flags_of_run,
)
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.edges.sites import graph_at, modules_and_edges
from circuitcut.masks.formats.edge_matrices import copies_per_edge
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import area_rows, faithfulness_rows, format_table
from circuitcut.tasks.base import Corpus

logger = logging.getLogger(__name__)


def main(config: FaithfulnessConfig) -> Path:
    """Rank, keep the top of each ranking, measure; table, figure and results.json."""
    RunDirectory.check(config.run_dir)
    given = config
    masks = [mask_at(path) for path in config.mask]
    if masks:
        config = _with_flags_of(config, masks)
    elif not config.units:
        config = replace(config, units=["edges"])
    experiment = load(config, _data_check(given, masks))
    sites = masks[0].sites if masks else _sites(config, experiment)
    methods = methods_of(
        config.methods, list(dict.fromkeys(site.kind for site in sites))
    )
    counts = _counts(config, sites)
    experiment = with_base_model(experiment)
    for path, mask in zip(config.mask, masks, strict=True):
        check_fit(mask, path, experiment)
        if other_data := other_data_warning(mask, experiment):
            logger.warning("%s: %s", path, other_data)
    if not config.methods:
        methods.append("random")
    n_batches = attribution_batches(config.n_batches, sites)
    flags: dict[str, Any] = {"methods": methods or ["none"], "n_batches": n_batches}
    if masks:  # units and ablation are theirs
        flags["units"] = []
    else:
        flags["ablation"] = _ablation_kind(config, experiment)
    experiment = resolved(experiment, config, **flags)
    made_with = provenance_of(experiment)
    run = new_run(experiment, given, "faithfulness", made_with=made_with)
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        rankers = Rankers(methods, config.n_random, n_batches, config.seed)
        results = _results(config, experiment, sites, rankers, masks, counts)
        results["next"] = command("report", {"runs": run.path})
        run.write_results(results)
    for rows in (faithfulness_rows(results), area_rows(results)):
        print(f"{format_table(rows, list(rows[0]))}\n")
    for figure in draw_all(load_run(run.path)).values():
        print(f"figure: {figure}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _data_check(
    given: FaithfulnessConfig, masks: Sequence[FrozenMask]
) -> Callable[[Corpus], None]:
    """What refuses data that have changed since one of the masks was made."""
    checks = [
        same_data(mask, path, given, allow_other=given.allow_other_data)
        for path, mask in zip(given.mask, masks, strict=True)
    ]

    def check(corpus: Corpus) -> None:
        for check_one in checks:
            check_one(corpus)

    return check


def _results(
    config: FaithfulnessConfig,
    experiment: Experiment,
    sites: tuple[Site, ...],
    rankers: Rankers,
    masks: Sequence[FrozenMask],
    counts: Tensor | None,
) -> dict[str, Any]:
    empty = nothing_kept(masks[0]) if masks else _empty(config, experiment, sites)
    learned = dict(zip(config.mask, masks, strict=True))
    ranked = rankings(experiment, empty, rankers, learned)
    split: Any = config.split
    results = measured(
        experiment,
        empty,
        ranked,
        fractions=config.fractions,
        split=split,
        counts=counts,
        complements=config.complements,
    )
    return results | {"masks": [str(path) for path in config.mask]}


def _counts(config: FaithfulnessConfig, sites: Sequence[Site]) -> Tensor | None:
    """What every unit counts for in a share; None is 1."""
    if config.count == "units":
        return None
    modules, edges = modules_and_edges(sites)
    if modules or not edges or len(edges) <= graph_at(edges).n_layers:
        raise UserError(
            "--count mib is about masks on all edges alone, got "
            f"{' and '.join(sorted({site.kind for site in sites}))}; leave it out, or "
            "give --units edges without --layers"
        )
    return copies_per_edge(graph_at(edges))


def _with_flags_of(
    config: FaithfulnessConfig, masks: Sequence[FrozenMask]
) -> FaithfulnessConfig:
    for path, mask in zip(config.mask, masks, strict=True):
        ranking_of_run(path, mask)
        if mask.provenance.get("direction") != "isolate":
            raise UserError(
                f"--mask {path} ranks units for --direction break; circuits come from "
                "train_mask.py --direction isolate"
            )
        same = mask.sites == masks[0].sites and mask.special_ids == masks[0].special_ids
        if not same or mask.ablated.kind != masks[0].ablated.kind:
            raise UserError(
                f"--mask {path} has other units or another ablation than "
                f"{config.mask[0]}; measure them one by one"
            )
    return with_flags_of_run(config, config.mask[0])


def _sites(config: FaithfulnessConfig, experiment: Experiment) -> tuple[Site, ...]:
    check_pairs(experiment.task, _ablation_kind(config, experiment))
    return sites_for(config, experiment.loaded.model)


def _ablation_kind(config: FaithfulnessConfig, experiment: Experiment) -> Any:
    usual = "counterfactual" if experiment.task.no_pairs is None else "mean"
    return config.ablation or usual


def _empty(
    config: FaithfulnessConfig, experiment: Experiment, sites: tuple[Site, ...]
) -> FrozenMask:
    """The mask that ablates every unit, with the ablation values of all circuits."""
    settings = MaskSettings(
        gate="none",
        ablation=_ablation_kind(config, experiment),
        direction="isolate",
        positions="all" if "edges" in units_of(config) else "words",
        seed=config.seed,
    )
    n_units = sum(site.n_units for site in sites)
    return untrained(experiment, sites, settings, n_ablated=n_units)


if __name__ == "__main__":
    run_script(main, FaithfulnessConfig)
