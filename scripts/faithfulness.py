"""How faithful circuits of every size are: learned rankings, attribution and random.

    python scripts/faithfulness.py --mask runs/RUN

Keeps the top shares of each ranking and ablates the rest, held-out data: how much of
the concept's margin stays (f), the task's score, KL to the uncut model, and the same
with the circuit ablated and the rest kept. CPR and CMD are the areas under f and under
|1 - f|, as in the MIB benchmark. A soft top-k run (`train_mask.py --direction isolate`)
ranks every unit, so one training serves all sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from circuitcut.attribution.faithfulness import (
    FRACTIONS,
    areas,
    faithfulness,
)
from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.flags import (
    Experiment,
    TaskConfig,
    UnitsConfig,
    command,
    flag,
)
from circuitcut.experiments.gates import (
    MaskSettings,
    ablation_values,
    cut_with,
    special_ids,
)
from circuitcut.experiments.plan import (
    check_pairs,
    has_pairs,
    methods_of,
    sites_for,
    units_of,
)
from circuitcut.experiments.scores import (
    cut_by,
    provenance,
    ranking_of_run,
    responsibility,
)
from circuitcut.masks.edges.sites import (
    by_site,
    flat_gates,
    graph_at,
    modules_and_edges,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_files import check_model
from circuitcut.models.loading import LoadedModel
from circuitcut.models.residual.connected_edges import connected
from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import area_rows, faithfulness_rows, format_table
from circuitcut.scripts.evaluate import from_run, mask_at
from circuitcut.scripts.train_base import prepare
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.base import SPLITS
from circuitcut.tasks.evaluation import References, evaluate
from circuitcut.training.config import config_dict, run_script

Rankings = dict[tuple[str, int, str], Mapping[str, Tensor]]
"""By method, seed and order (`signed` or `absolute`); the highest are kept."""


@dataclass(frozen=True)
class FaithfulnessConfig(UnitsConfig):
    """Which rankings, and how much of each is kept."""

    mask: list[Path] = flag(
        [], "train_mask runs whose rankings are measured; they give the task's flags"
    )
    methods: list[str] = flag(
        [],
        f"attribution rankings: {', '.join(sorted(METHODS))}, all, or none; default: "
        "random and gradient_margin, probeless; for edges eap, eap_ig",
    )
    ablation: Literal["zero", "mean", "counterfactual"] | None = flag(
        None,
        "without --mask, what replaces what is ablated; default: counterfactual, or "
        "mean where the task has no paired inputs",
    )
    fractions: list[float] = flag(list(FRACTIONS), "shares of the units kept, rising")
    split: str = flag("heldout", f"one of {', '.join(SPLITS)}")
    n_batches: int = flag(32, "batches of 16 examples the scores are averaged over")
    n_random: int = flag(3, "random rankings")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.fractions
        if (
            len(shares) < 2
            or shares != sorted(set(shares))
            or not 0 < shares[0] <= shares[-1] <= 1
        ):
            raise UserError(
                f"--fractions must be two or more in (0, 1] and rise, got {shares}"
            )
        if self.split not in SPLITS:
            raise UserError(
                f"--split must be one of {list(SPLITS)}, got {self.split!r}"
            )
        wrong = [m for m in self.methods if m not in (*METHODS, "all", "none")]
        if wrong:
            raise UserError(f"--methods must be among {sorted(METHODS)}, got {wrong}")
        if self.n_batches < 1 or self.n_random < 0:
            raise UserError(
                "--n_batches must be positive and --n_random not negative, got "
                f"{self.n_batches} and {self.n_random}"
            )
        of_mask = [f.name for f in fields(UnitsConfig)[len(fields(TaskConfig)) :]]
        default = UnitsConfig()
        given = [n for n in of_mask if getattr(self, n) != getattr(default, n)]
        if self.mask and (given or self.ablation):
            names = [f"--{name}" for name in given or ["ablation"]]
            raise UserError(
                f"{' and '.join(names)}: beside --mask they are its own; leave them out"
            )


def main(config: FaithfulnessConfig) -> Path:
    """Rank, keep the top of each ranking, measure; table, figure and results.json."""
    RunDirectory.check(config.run_dir)
    masks = [mask_at(path) for path in config.mask]
    if masks:
        config = _with_flags_of(config, masks)
    elif not config.units:
        config = replace(config, units=["edges"])
    experiment = prepare(config, check=partial(_check, config, masks))
    for path, mask in zip(config.mask, masks, strict=True):
        check_model(
            mask.sites,
            mask.provenance,
            path,
            experiment.loaded.model,
            config_hash=experiment.loaded.config_hash,
        )
    run = RunDirectory.create(
        config.run_dir,
        kind="faithfulness",
        task=config.task,
        model=config.model_name,
        config=config_dict(config),
    )
    if not run.is_writer:  # one of several processes is enough
        return run.path
    empty = _nothing_kept(config, experiment, masks)
    rankings = _rankings(config, experiment, empty, masks)
    results = _measured(config, experiment, empty, rankings)
    run.write_results(results)
    for rows in (faithfulness_rows(results), area_rows(results)):
        print(f"{format_table(rows, list(rows[0]))}\n")
    for figure in draw_all(load_run(run.path)).values():
        print(f"figure: {figure}")
    print(f"run: {run.path}\nnext: {command('report', {'runs': run.path})}")
    return run.path


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
    return from_run(config, config.mask[0])


def _check(
    config: FaithfulnessConfig, masks: Sequence[FrozenMask], loaded: LoadedModel
) -> None:
    if not masks:
        check_pairs(config.task, _ablation_kind(config))
        sites_for(config, loaded.model)
    methods_of(config.methods, _kinds(config, masks))


def _kinds(config: FaithfulnessConfig, masks: Sequence[FrozenMask]) -> list[str]:
    if masks:
        return list(dict.fromkeys(site.kind for site in masks[0].sites))
    return list(units_of(config))


def _ablation_kind(config: FaithfulnessConfig) -> Any:
    usual = "counterfactual" if has_pairs(config.task) else "mean"
    return config.ablation or usual


def _nothing_kept(
    config: FaithfulnessConfig, experiment: Experiment, masks: Sequence[FrozenMask]
) -> FrozenMask:
    """The mask that ablates every unit, with the ablation values of all circuits."""
    if masks:
        first = masks[0]
        sites, ablated = first.sites, first.ablated
        special, made = first.special_ids, first.provenance
    else:
        sites = sites_for(config, experiment.loaded.model)
        settings = MaskSettings(
            gate="none",
            ablation=_ablation_kind(config),
            direction="isolate",
            positions="all" if "edges" in config.units else "words",
            seed=config.seed,
        )
        ablated = ablation_values(experiment, sites, settings)
        special = special_ids(experiment, settings)
        made = provenance(config, experiment, settings)
    keep = {site.name: torch.zeros(site.n_units, dtype=torch.bool) for site in sites}
    return FrozenMask(keep, sites, ablated, special, made)


def _rankings(
    config: FaithfulnessConfig,
    experiment: Experiment,
    empty: FrozenMask,
    masks: Sequence[FrozenMask],
) -> Rankings:
    rankings: Rankings = {}
    for path, mask in zip(config.mask, masks, strict=True):
        gate = str(mask.provenance["gate"])
        number = sum(method == gate for method, *_ in rankings)
        rankings[gate, number, "signed"] = ranking_of_run(path, mask)
    kinds = list(dict.fromkeys(site.kind for site in empty.sites))
    methods = methods_of(config.methods, kinds)
    if not config.methods:
        methods.append("random")
    for method in methods:
        seeds = config.n_random if method == "random" else 1
        for number in range(seeds):
            ranking = responsibility(
                experiment,
                empty,
                method,
                seed=config.seed + number,
                n_batches=config.n_batches,
            )
            rankings[method, number, "signed"] = ranking
            if method != "random":
                rankings[method, number, "absolute"] = {
                    name: values.abs() for name, values in ranking.items()
                }
    return rankings


def _measured(
    config: FaithfulnessConfig,
    experiment: Experiment,
    empty: FrozenMask,
    rankings: Rankings,
) -> dict[str, Any]:
    measure = _Measure(config, experiment)
    whole, none = measure(_complement(empty)), measure(empty)
    ends = whole["margin"], none["margin"]
    curve = []
    for (method, seed, order), ranking in rankings.items():
        for fraction in config.fractions:
            n_kept = int(fraction * empty.n_units)
            circuit = _circuit(empty, ranking, n_kept)
            kept, cut = measure(circuit), measure(_complement(circuit))
            curve.append(
                {
                    "method": method,
                    "order": order,
                    "seed": seed,
                    "fraction": fraction,
                    "n_kept": n_kept,
                    "n_connected": circuit.n_units - circuit.n_ablated,
                    "faithfulness": faithfulness(kept["margin"], *ends),
                    "scores": kept,
                    "without": {
                        "faithfulness": faithfulness(cut["margin"], *ends),
                        "scores": cut,
                    },
                }
            )
    task = experiment.task
    return {
        "kind": "faithfulness",
        "task": config.task,
        "model": config.model_name,
        "split": config.split,
        "masks": [str(path) for path in config.mask],
        "units": list(dict.fromkeys(site.kind for site in empty.sites)),
        "ablation": empty.ablated.kind,
        "n_units": empty.n_units,
        "scores": {"uncut": whole, "nothing kept": none},
        "curve": curve,
        "areas": _areas(config.fractions, curve),
        "concept_metric": vars(task.concept_metric),
        "retain_metric": vars(task.retain_metric),
    }


class _Measure:
    """Scores of a mask on the split, each mask once."""

    def __init__(self, config: FaithfulnessConfig, experiment: Experiment):
        self.split: Any = config.split
        self.experiment = experiment
        self.references = References()
        self.known: dict[bytes, dict[str, float]] = {}

    def __call__(self, mask: FrozenMask) -> dict[str, float]:
        flat = torch.cat([mask.keep[site.name] for site in mask.sites])
        key = flat.numpy().tobytes()
        if key not in self.known:
            self.known[key] = evaluate(
                self.experiment.task,
                self.experiment.loaded.model,
                self.split,
                cut=cut_with(self.experiment, mask),
                reference=self.references,
                of_concept={"margin": position_margin},
            ).scores
        return self.known[key]


def _circuit(
    empty: FrozenMask, ranking: Mapping[str, Tensor], n_kept: int
) -> FrozenMask:
    """The top of a ranking; of edges those that connect an input to the logits."""
    mask = cut_by(empty, ranking, empty.n_units - n_kept)
    modules, edges = modules_and_edges(mask.sites)
    if modules or not edges or len(edges) <= graph_at(edges).n_layers:
        return mask  # what is in no site stays on, and may connect anything
    graph = graph_at(edges)
    flat = connected(graph, flat_gates(edges, mask.keep))
    return replace(mask, keep=by_site(edges, flat))


def _complement(mask: FrozenMask) -> FrozenMask:
    return replace(mask, keep={name: ~kept for name, kept in mask.keep.items()})


def _areas(
    fractions: Sequence[float], curve: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """CPR and CMD of every ranking."""
    groups: dict[tuple[str, str, int], list[float | None]] = {}
    for entry in curve:
        key = entry["method"], entry["order"], entry["seed"]
        groups.setdefault(key, []).append(entry["faithfulness"])
    found = []
    for (method, order, seed), shares in groups.items():
        cpr, cmd = areas(fractions, shares)
        found.append(
            {"method": method, "order": order, "seed": seed, "cpr": cpr, "cmd": cmd}
        )
    return found


if __name__ == "__main__":
    run_script(main, FaithfulnessConfig)
