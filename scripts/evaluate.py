"""Measure a model with or without a mask, and its scores against the cut's size.

    python scripts/evaluate.py --mask runs/RUN
    python scripts/evaluate.py --task ioi --model path/to/model

With --mask, task, model and data are the run's unless a flag says otherwise. --sizes
draws concept and retain scores against the number of ablated units, by the ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from circuitcut.attribution.abilities import ABILITIES
from circuitcut.experiments.defaults.of_mask import methods_of
from circuitcut.experiments.flags import TaskConfig
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import N_BATCHES, UNITS_OR_0
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.settings.options import SPLITS
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class EvaluateConfig(TaskConfig):
    """What is measured, and on what."""

    heading: ClassVar[str] = "what is measured"

    mask: Path | None = flag(
        None, "run directory (or folder) that holds a mask", decides_defaults=True
    )
    split: str = flag("heldout", f"one of {', '.join(SPLITS)}")
    sizes: list[int] = flag(
        [], "numbers of ablated units to score the ranking at", within=UNITS_OR_0
    )
    methods: list[str] = flag(
        [], "attribution methods to draw beside the mask's ranking"
    )
    attribution_batches: int | None = flag(
        None,
        "batches of 16 examples over which the methods' scores are averaged; default "
        "32, of graphs above 2,000 edges 8",
        within=N_BATCHES,
    )
    sampled: bool = flag(
        False,
        "score what the model writes too (toxicity: sampled continuations; facts: the "
        "object in ten tokens of greedy decoding, and multiple choice)",
    )
    allow_other_weights: bool = flag(
        False, "apply the mask to other weights of the same shape"
    )
    allow_other_data: bool = flag(
        False, "measure it on data that have changed since it was made"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise UserError(
                f"--split must be one of {list(SPLITS)}, got {self.split!r}"
            )
        if (self.sizes or self.methods) and self.mask is None:
            raise UserError("--sizes and --methods need --mask")
        wrong = [method for method in self.methods if method not in ABILITIES]
        if wrong:
            raise UserError(f"--methods must be among {sorted(ABILITIES)}, got {wrong}")


parse_first(__name__, EvaluateConfig, __doc__)

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.circuits.edges_of_mask import circuit_of
from circuitcut.experiments.circuits.heads_of_mask import heads_of
from circuitcut.experiments.circuits.published import published_overlap
from circuitcut.experiments.describe import header, scores_by_name
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import attribution_batches
from circuitcut.experiments.runs.data_of_mask import other_data_warning, same_data
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import (
    RANKING_FILE,
    check_fit,
    mask_at,
    new_run,
    ranking_of_run,
    with_flags_of_run,
)
from circuitcut.experiments.scores import attribution_scores, score
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import format_table
from circuitcut.reports.verdict import effect_warning
from circuitcut.reports.words import method_name, metric_name, score_name


def main(config: EvaluateConfig) -> Path:
    """Evaluate, print the table, write results.json and the figure."""
    given, mask = config, _mask(config)
    if config.mask is not None:
        config = with_flags_of_run(config, config.mask)
    RunDirectory.check(config.run_dir)
    same = None
    if mask is not None and config.mask is not None:
        allowed = config.allow_other_data
        same = same_data(mask, config.mask, given, allow_other=allowed)
    experiment = with_base_model(load(config, same))
    if mask is not None and config.mask is not None:
        check_fit(mask, config.mask, experiment, config.allow_other_weights)
        n_batches = attribution_batches(config.attribution_batches, mask.sites)
        config = replace(config, attribution_batches=n_batches)
    experiment = resolved(experiment, config)
    made_with = provenance_of(experiment)
    run = new_run(experiment, given, "evaluate", made_with=made_with)
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        results = _results(config, experiment, mask)
        runs = [config.mask, run.path] if config.mask else [run.path]
        results["next"] = command("report", {"runs": runs})
        run.write_results(results)
    _show_scores(results)
    if results["curve"]:
        _show_curve(results)
        for figure in draw_all(load_run(run.path)).values():
            print(f"figure: {figure}")
    if results["warning"]:
        print(f"warning: {results['warning']}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _mask(config: EvaluateConfig) -> FrozenMask | None:
    """The mask asked for, if one was; the flags about it are checked."""
    if config.mask is None:
        return None
    mask = mask_at(config.mask)
    if max(config.sizes, default=0) > mask.n_units:
        raise UserError(
            f"--sizes must be at most the {mask.n_units} units of {config.mask}, got "
            f"{max(config.sizes)}"
        )
    methods_of(config.methods or ["none"], [site.kind for site in mask.sites])
    return mask


def _results(
    config: EvaluateConfig, experiment: Experiment, mask: FrozenMask | None
) -> dict[str, Any]:
    split: Any = config.split
    scored = {
        name: score(
            experiment, cut, split=split, sampled=config.sampled, seed=config.seed
        )
        for name, cut in {"uncut": None, "cut": mask}.items()
        if name == "uncut" or mask is not None
    }
    curve: list[dict[str, Any]] = []
    if mask is not None and config.mask and (config.sizes or config.methods):
        assert config.attribution_batches is not None  # `main` has resolved it
        _, curve = attribution_scores(
            experiment,
            mask,
            config.methods,
            sizes=config.sizes or [mask.n_ablated],
            seed=config.seed,
            rankings={"mask": ranking_of_run(config.mask, mask)},
            split=split,
            n_batches=config.attribution_batches,
        )
    results = (
        header("evaluate", experiment, mask=mask)
        | scores_by_name(scored)
        | {
            "split": config.split,
            "mask": str(config.mask) if config.mask else None,
            "direction": mask.provenance.get("direction") if mask else None,
            "curve": curve,
            **_units_of(config, experiment, mask),
        }
    )
    warnings = [effect_warning(results)]
    if mask is not None:
        warnings.append(other_data_warning(mask, experiment))
    return results | {"warning": " ".join(filter(None, warnings)) or None}


def _units_of(
    config: EvaluateConfig, experiment: Experiment, mask: FrozenMask | None
) -> dict[str, Any]:
    """Names of the edges and heads of the mask; None without one."""
    if mask is None or config.mask is None:
        return dict.fromkeys(("circuit", "heads", "published_circuit"))
    known = (config.mask / RANKING_FILE).exists()
    ranking = ranking_of_run(config.mask, mask) if known else None
    return {
        "circuit": circuit_of(mask, ranking),
        "heads": heads_of(mask, ranking),
        "published_circuit": published_overlap(
            config.task, config.model_name, experiment.loaded.model, mask
        ),
    }


def _show_scores(results: Mapping[str, Any]) -> None:
    scored = results["scores"]
    rows = [
        {"score": score_name(results, name)}
        | {key: scores.get(name) for key, scores in scored.items()}
        for name in scored["uncut"]
    ]
    print(format_table(rows, ["score", *scored]))


def _show_curve(results: Mapping[str, Any]) -> None:
    metrics = [results[f"{which}_metric"] for which in ("concept", "retain")]
    rows = [
        {"method": method_name(row["method"]), "units ablated": row["n_ablated"]}
        | {metric_name(m): row["scores"].get(m["name"]) for m in metrics}
        for row in results["curve"]
    ]
    print(f"\n{format_table(rows, list(rows[0]))}")


if __name__ == "__main__":
    run_script(main, EvaluateConfig)
