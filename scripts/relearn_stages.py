"""Rank hidden units, prune the top, retrain in stages, and read where the concept went.

    python scripts/relearn_stages.py
    python scripts/relearn_stages.py --model minilm --data corpus.conll --concept LOC

The study of Lo et al. (2024), "Large Language Models Relearn Removed Concepts", whole
and repaired. For every seed: a base model, a ranking of the hidden units of all levels
(0 is the embedding level), scores of the model pruned at every share, then for the
share at which the concept alone is gone: retraining in stages, of the cut, of a random
cut with the same counts and of the uncut model. Every stage keeps its weights, scores,
and what each unit says; a killed run continues with --resume, stage by stage, to the
same bits. The built-in encoder takes about four minutes on two cores.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitcut.experiments.stages.flags import StagesConfig
from circuitcut.storage.command_lines import command
from circuitcut.storage.flag_fields import flag
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class RelearnStagesConfig(StagesConfig):
    """What is ranked, pruned, retrained and read."""

    resume: Path | None = flag(None, "continue this unfinished run")


parse_first(__name__, RelearnStagesConfig, __doc__)

from circuitcut.experiments.base_model import warning_of_base, with_base_model
from circuitcut.experiments.describe import header
from circuitcut.experiments.load import (
    Experiment,
    load,
    provenance_of,
)
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.runs.resuming import begin_or_continue, begun, data_check
from circuitcut.experiments.saved_runs import new_run
from circuitcut.experiments.stages.results import summarised
from circuitcut.experiments.stages.seed_study import (
    SeedResult,
    SeedStudy,
    vocabulary_of,
)
from circuitcut.relearning.stages.arms import Arm
from circuitcut.relearning.stages.records import step_of
from circuitcut.relearning.stages.retraining import stage_folder
from circuitcut.relearning.top_words import UNWORDED
from circuitcut.reports.stages.tables import stage_rows
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import write_json
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.tracking import Tracker

MOST_LEFT = 0.5
"""Share of the concept's ability that a cut may leave without a warning."""
logger = logging.getLogger(__name__)


def main(config: RelearnStagesConfig) -> Path:
    """Begin a run, or continue one that no other process works on."""
    return begin_or_continue(config, config.resume, "relearn_stages", _studied)


def _studied(config: RelearnStagesConfig, resumed: RunDirectory | None) -> Path:
    """Every seed in turn, then the numbers of all of them."""
    given, config = config, config.with_usual()
    if resumed is None:
        RunDirectory.check(config.run_dir)
    first = _experiment(config, config.seeds[0], resumed)
    first = resolved(first, config)
    config = replace(config, model=first.config.model)
    vocabulary = vocabulary_of(config, first)
    _study(config, first, config.seeds[0], Path(), vocabulary, {}, None).check()
    made_with = provenance_of(first)
    begun(resumed, made_with)
    run = resumed or new_run(first, given, "relearn_stages", made_with=made_with)
    if vocabulary is not None and run.is_writer:
        write_json(run.path / "words.json", vocabulary.record())
    lock = nullcontext() if resumed else run.locked()
    with lock, Tracker(run) as tracker:
        results, shares, choice = [], config.retrained(), None
        for seed in config.seeds:
            is_first = seed == config.seeds[0]
            experiment = first if is_first else _experiment(config, seed, resumed)
            folder = run.path / "seeds" / f"seed-{seed}"
            study = _study(
                config, experiment, seed, folder, vocabulary, made_with, tracker
            )
            _cut_metrics(run, folder, seed)
            if shares is None:  # the first seed chooses for all of them
                choice = study.choice(study.scan(study.rankings()[0][config.ranking]))
                shares = [choice.share]
                logger.info("retraining at share %g: %s", choice.share, choice.reason)
            results.append((study.run(shares), experiment.base))
        if not run.is_writer:  # the first of several processes has the measurements
            return run.path
        numbers = summarised(
            first.task,
            study.sites,
            vocabulary,
            [result for result, _ in results],
            seed=config.seed,
        )
        written = header("relearn_stages", first, study.sites, ablation="zero") | {
            "shares": sorted(set(config.shares)),
            "retrained": shares,
            "choice": vars(choice) if choice else None,
            "seeds": [_seed_entry(result, base) for result, base in results],
            **numbers,
            "words_note": UNWORDED.get(config.task),
            "warning": _warning(first, numbers),
            "next": command("report", {"runs": run.path}),
        }
        run.write_results(written)
    _show(written, run.path)
    return run.path


def _experiment(
    config: RelearnStagesConfig, seed: int, resumed: RunDirectory | None
) -> Experiment:
    """The experiment with the base model of a seed."""
    of_seed = replace(config, base_seed=config.base_seed + seed)
    return with_base_model(load(of_seed, data_check(resumed)))


def _study(
    config: RelearnStagesConfig,
    experiment: Experiment,
    seed: int,
    folder: Path,
    vocabulary: Any,
    made_with: Mapping[str, Any],
    tracker: Tracker | None,
) -> SeedStudy:
    def on_log(arm: Arm, step: int, numbers: dict[str, float]) -> None:
        if tracker is not None:
            prefix = f"seed{seed}/{arm.key}"
            named = {f"{prefix}/{name}": value for name, value in numbers.items()}
            tracker.scalars(step, named)

    return SeedStudy(config, experiment, seed, folder, vocabulary, made_with, on_log)


def _cut_metrics(run: RunDirectory, folder: Path, seed: int) -> None:
    """Cut off what a killed process logged after the last stage it finished."""
    for path in sorted((folder / "arms").glob("*")):
        number, first = 0, 0
        while (step := step_of(stage_folder(path, number))) is not None:
            number, first = number + 1, step
        run.truncate_metrics(first, prefix=f"seed{seed}/{path.name}/")


def _seed_entry(result: SeedResult, base: Mapping[str, Any]) -> dict[str, Any]:
    saved = result.base.header
    return {
        "seed": result.seed,
        "base": dict(base),
        "base_sha256": saved["made_with"]["base_sha256"],
        "scores": saved["scores"],
        "unseen": saved["unseen_scores"],
        "tune": saved["tune"],
    }


def _warning(experiment: Experiment, numbers: Mapping[str, Any]) -> str | None:
    """Why the study shows nothing; None where it shows something."""
    if found := warning_of_base(experiment):
        return found
    cuts = [
        entry
        for entry in numbers["relearned"]
        if (entry["condition"], entry["stage"]) == ("cut", 0)
    ]
    if not cuts or cuts[0]["concept"] is None:
        return None
    left, of_rest = cuts[0]["concept"], cuts[0]["retain"]
    named = f"the cut of a share of {cuts[0]['share']:g} leaves {left:.0%}"
    if left > MOST_LEFT:
        return f"{named} of the concept's ability: name larger --shares."
    if of_rest is not None and of_rest <= left:
        return (
            f"{named} of the concept's ability and {of_rest:.0%} of the rest's: it is "
            "not specific to the concept; name smaller --shares, or another --ranking "
            "or --holdings."
        )
    return None


def _show(results: Mapping[str, Any], path: Path) -> None:
    rows: Sequence[dict[str, Any]] = stage_rows(results)
    print(format_table(rows, list(rows[0])))
    if results["choice"]:
        print(f"share {results['choice']['share']:g}: {results['choice']['reason']}")
    print(f"run: {path}\nnext: {results['next']}")


if __name__ == "__main__":
    run_script(main, RelearnStagesConfig)
