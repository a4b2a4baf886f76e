"""Find the units whose ablation makes a concept go while the rest stays.

    python scripts/train_mask.py --task locations

Trains the gates, freezes them, measures the frozen mask on held-out data beside random
cuts and attribution cuts of the same size, and writes a run directory under runs/:
config.json, settings.json, metrics.jsonl, mask.safetensors, mask.json,
ranking.safetensors and results.json. A minute or two on two CPU cores; docs/results has
the numbers to expect.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcut.experiments.defaults.of_mask import chosen_settings
from circuitcut.experiments.flags import run_dir_flag
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import config_dict, parse_first, run_script

SHOWN_NAMES = 8


@dataclass(frozen=True)
class TrainMaskConfig(MaskConfig):
    """Settings of one mask-training run; None takes the task's recipe."""

    name: Path | None = flag(None, "name of the run directory; default: generated")
    resume: Path | None = flag(None, "continue this unfinished run with its own flags")

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        return super().chosen() | chosen_settings(self)


parse_first(__name__, TrainMaskConfig, __doc__)

from circuitcut.experiments.base_model import longer_training, with_base_model
from circuitcut.experiments.describe import describe
from circuitcut.experiments.finish import finish
from circuitcut.experiments.freeze import freeze
from circuitcut.experiments.gate_training import (
    ablation_values,
    special_ids,
    train_gates,
)
from circuitcut.experiments.load import (
    Experiment,
    load,
    provenance_of,
)
from circuitcut.experiments.mean_check import warn_of_poison
from circuitcut.experiments.plan import Plan, plan, read_superset
from circuitcut.experiments.runs.resolved import hashes_of, with_plan
from circuitcut.experiments.runs.resuming import begin_or_continue, begun, data_check
from circuitcut.experiments.saved_runs import new_run, save_frozen
from circuitcut.experiments.watch import show_frozen, watched
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.holding import check_holdable
from circuitcut.reports.tables import format_table
from circuitcut.reports.verdict import base_warning
from circuitcut.reports.words import BESIDE, METRICS, method_name, metric_name
from circuitcut.training.fit_arguments import Checkpoints
from circuitcut.training.fit_state import saved_steps
from circuitcut.training.tracking import Tracker


def main(config: TrainMaskConfig) -> Path:
    """Begin a run, or continue one that no other process works on."""
    return begin_or_continue(config, config.resume, "train_mask", _trained)


def _trained(config: TrainMaskConfig, resumed: RunDirectory | None) -> Path:
    """Load, plan, train the gates, freeze, finish, describe."""
    if resumed is None:
        RunDirectory.check(config.run_dir, config.name)
    superset = read_superset(config)
    experiment = load(config, data_check(resumed))
    planned = plan(config, experiment, superset=superset, resumed=config.resume)
    experiment = with_base_model(experiment)
    experiment = with_plan(experiment, config, planned)
    made_with = provenance_of(experiment, **hashes_of(planned))
    run = begun(resumed, made_with) or _new(experiment, config, planned, made_with)
    start = saved_steps(run.checkpoint_path) if resumed else None
    lock = nullcontext() if resumed else run.locked()
    with lock, Tracker(run, resume_step=start) as tracker:
        ablated = ablation_values(experiment, planned.sites, planned.settings)
        spared = special_ids(experiment, planned.settings)
        warn_of_poison(experiment, planned.sites, ablated, spared)
        masks = train_gates(
            experiment,
            planned.sites,
            ablated,
            planned.settings,
            superset=planned.superset,
            checkpoints=Checkpoints(run.checkpoint_path, bool(resumed), made_with),
            watch=watched(tracker, planned.settings),
        )
        if not run.is_writer:  # the first of several processes does the rest
            return run.path
        frozen = freeze(planned, experiment, masks, ablated)
        frozen = finish(planned, experiment, frozen)
        save_frozen(frozen.mask, frozen.ranking, run.path)
        show_frozen(tracker, planned.settings, frozen.mask)
        results = describe(planned, experiment, masks, frozen, ablated)
        results["next"] = _next(config, results, frozen.mask, run.path)
        tracker.hparams(config_dict(config), results["scores"]["cut"])
        run.write_results(results)
    _show(results, run.path)
    return run.path


def _new(
    experiment: Experiment,
    config: TrainMaskConfig,
    planned: Plan,
    made_with: Mapping[str, Any],
) -> RunDirectory:
    return new_run(
        experiment,
        config,
        "train_mask",
        name=config.name,
        made_with=made_with,
        files=planned.files() | experiment.task.files(),
    )


def _next(
    config: TrainMaskConfig, results: Mapping[str, Any], mask: FrozenMask, path: Path
) -> str:
    """Relearning; a better base model; or the report of a mask not to be relearned."""
    if base_warning(results) and results["base"]:
        return longer_training(config, results["base"])
    try:
        if results["warning"]:
            return command("report", {"runs": path})
        check_holdable(mask, {"lasting"})
        return command("relearn", {"mask": path, **run_dir_flag(config)})
    except UserError:
        return command("report", {"runs": path})


def _show(results: Mapping[str, Any], path: Path) -> None:
    """Print the small table of a mask run and the next command."""
    scores = results["scores"]
    concept, retain = results["concept_metric"], results["retain_metric"]
    randoms = scores["random"]
    rows = [
        _row("uncut" if results["base"] else "uncut, as loaded", 0, scores["uncut"]),
        _row("learned cut", results["n_ablated"], scores["cut"]),
    ]
    rows += [
        _row(f"cut by {method_name(method)}", results["n_ablated"], values)
        for method, values in scores["attribution"].items()
    ]
    if randoms:
        mean = {k: sum(r[k] for r in randoms) / len(randoms) for k in randoms[0]}
        rows.append(
            _row(f"random cut (mean of {len(randoms)})", results["n_ablated"], mean)
        )
    shown = {metric["name"]: metric_name(metric) for metric in (concept, retain)}
    beside = [key for key in BESIDE if key in scores["uncut"]]
    shown |= {key: METRICS[key] for key in (*beside, "kl_retain")}
    table = [
        {
            "model": r["model"],
            "ablated": r["ablated"],
            **{name: r["scores"].get(key) for key, name in shown.items()},
        }
        for r in rows
    ]
    print(
        f"\n{results['task']} on {results['model']}: {results['n_ablated']} of "
        f"{results['n_units']} {' and '.join(results['units'])} ablated, held-out data"
    )
    print(format_table(table, ["model", "ablated", *shown.values()]))
    _show_names(results)
    better = "higher" if concept["higher_is_better"] else "lower"
    print(f"{metric_name(concept)}: the concept ({better} = more of it)")
    print(f"{metric_name(retain)}: the rest")
    if results["warning"]:
        print(f"warning: {results['warning']}")
    print(f"run: {path}\nnext: {results['next']}")


def _show_names(results: Mapping[str, Any]) -> None:
    """The first edges and heads of the mask, by name."""
    if results["edges"]:
        kept = results["direction"] == "isolate"
        print(f"{'kept' if kept else 'ablated'}: {_first(results['edges'])}")
    if results["heads"] and results["heads"]["names"]:
        kept = results["heads"]["kept"]
        print(f"{'kept' if kept else 'ablated'}: {_first(results['heads']['names'])}")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_NAMES])
    n_more = len(names) - SHOWN_NAMES
    return shown if n_more <= 0 else f"{shown} and {n_more} more (results.json)"


def _row(model: str, ablated: int, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"model": model, "ablated": ablated, "scores": scores}


if __name__ == "__main__":
    run_script(main, TrainMaskConfig)
