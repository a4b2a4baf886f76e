"""Fine-tune the cut model and see how the concept comes back.

    python scripts/relearn.py
    python scripts/relearn.py --mask runs/RUN --limits 1 4 16 64 all --seeds 0 1 2

Takes the newest finished train_mask run under --run_dir, or the one named by --mask.
The cut, the uncut and a randomly cut model are fine-tuned on the same data in the same
order and measured on held-out examples; results.json has every number of the report.
Two further conditions are controls: retain_only, the cut model fine-tuned without any
example of the concept, and never_learned, a model that was trained without them.
"""

import logging
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.experiments.flags import TaskConfig
from circuitcut.models.names import BUILTIN
from circuitcut.relearning.conditions import (
    CONDITIONS,
    HOLDINGS,
    Condition,
    conditions,
)
from circuitcut.relearning.lora_rank import check_peft, lora_rank
from circuitcut.relearning.trained_names import matcher
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    COUNT_OR_0,
    DECAY,
    LEARNING_RATE,
    POSITIVE,
    SEED,
    Range,
    check_number,
    quoted,
)
from circuitcut.storage.processes import by_first
from circuitcut.storage.run_directory import RunDirectory, is_run
from circuitcut.tasks.settings.registry import DEFAULTS
from circuitcut.training.config import parse_first, run_script
from circuitcut.training.schedules import Schedule

USUAL: dict[str, Any] = {
    "limits": ["16", "all"],
    "n_steps": 40,
    "batch_size": 16,
    "n_evaluations": 4,
}
"""The flags that were not given, of models without defaults of their own."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelearnConfig(TaskConfig):
    """The protocol's settings; task, model and data are the mask run's."""

    heading: ClassVar[str] = "relearning"
    headings: ClassVar[Headings] = {
        "training": (
            *("n_steps", "batch_size", "lr", "weight_decay", "optimiser", "schedule"),
            *("warmup", "clip_norm", "trained"),
        )
    }

    mask: Path | None = flag(
        None,
        "train_mask, import_mask or select_mask run; default: the newest finished "
        "train_mask run under --run_dir",
        decides_defaults=True,
    )
    conditions: list[str] = flag(
        ["cut", "uncut", "random"],
        f"what is fine-tuned: {', '.join(CONDITIONS)}. retain_only: the cut model, on "
        "examples without the concept alone; never_learned: a base model trained "
        "without them (a pretrained one fine-tuned without them), trained on first use",
    )
    holdings: list[str] = flag(
        ["lasting"], "lasting: the mask stays on; one_shot: written once, then free"
    )
    seeds: list[int] = flag(
        [0, 1, 2], "seeds of data order and random cuts", within=SEED
    )
    limits: list[str] = flag(
        [],
        "numbers of concept examples fine-tuned on; all: the whole split, which is all "
        "that remains of the default where there are fewer than 16",
    )
    n_steps: int | None = flag(None, "optimiser steps of every condition", within=COUNT)
    batch_size: int | None = flag(None, "examples a step", within=BATCH)
    lr: float | None = flag(
        None, "learning rate; of adapters ten times as high", within=LEARNING_RATE
    )
    weight_decay: float = flag(0.01, "decoupled weight decay", within=DECAY)
    optimiser: Literal["adam", "adamw", "sgd"] = flag("adamw", "optimiser")
    schedule: Schedule = flag(
        "constant", "of the learning rate; late: constant for 60 %, then down to 0"
    )
    warmup: int = flag(0, "steps over which the learning rate grows", within=COUNT_OR_0)
    clip_norm: float | None = flag(
        1.0, "greatest norm of a gradient; none: no limit", within=POSITIVE
    )
    trained: str = flag(
        "all",
        "what trains: all, head, mlp, attention, layers:0-2, a regex of names, or lora "
        "(adapters of rank 8; lora:16: of rank 16), which needs the package peft and "
        "the least memory",
        decides_defaults=True,
    )
    n_evaluations: int | None = flag(
        None, "measured moments after step 0", within=Range(1, 10**4)
    )
    probe: bool = flag(True, "linear probes on the hidden states right after the cut")
    redistribute: bool = flag(
        True, "rank the units again after relearning, with the top units' words"
    )
    fresh_mask: bool = flag(False, "train a fresh mask after relearning (slow)")
    allow_other_weights: bool = flag(False, "apply the mask to other weights")
    allow_other_data: bool = flag(
        False, "relearn on data that have changed since the mask was made"
    )
    resume: Path | None = flag(None, "continue this unfinished relearning run")

    def __post_init__(self) -> None:
        super().__post_init__()
        matcher(self.trained)  # checks it
        if lora_rank(self.trained) is not None:
            check_peft()
        self.combined()  # checks conditions, holdings, seeds and limits
        n_steps = self.n_steps or usual_flags(self)["n_steps"]
        if self.warmup >= n_steps:
            raise UserError(
                f"--warmup must be below --n_steps {n_steps}, got {self.warmup}"
            )

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        lr = usual_lr(self.trained, self.model_name in BUILTIN)
        return super().chosen() | {"lr": lr, **usual_flags(self)}

    def combined(self) -> list[Condition]:
        """Every combination of conditions, holdings, seeds and limits."""
        limits: list[int | None] = []
        for text in self.limits or usual_flags(self)["limits"]:
            if text != "all" and not (text.isascii() and text.isdigit()):
                raise UserError(f"--limits must be numbers or all, got {quoted(text)}")
            limits.append(None if text == "all" else int(text))
            check_number("--limits", limits[-1], COUNT)
        wrong = [holding for holding in self.holdings if holding not in HOLDINGS]
        if wrong:
            raise UserError(f"--holdings must be among {list(HOLDINGS)}, got {wrong}")
        holdings: Any = tuple(self.holdings)
        return conditions(
            tuple(self.conditions), holdings, tuple(self.seeds), tuple(limits)
        )


def usual_flags(config: TaskConfig) -> dict[str, Any]:
    """The flags that were not given, for this task and model."""
    return USUAL | dict(DEFAULTS[config.task].of(config.model_name).relearn or {})


def usual_lr(trained: str, built_in: bool) -> float:
    """The learning rate where no flag gives one; ten times as high for adapters."""
    lr = 5e-4 if built_in else 5e-5
    return lr if lora_rank(trained) is None else 10 * lr


parse_first(__name__, RelearnConfig, __doc__)

from circuitcut.experiments.base_model import prepare, with_base_model
from circuitcut.experiments.describe import header
from circuitcut.experiments.load import (
    Experiment,
    load,
    provenance_of,
)
from circuitcut.experiments.micro_batches import check_relearning
from circuitcut.experiments.runs.data_of_mask import other_data_warning, same_data
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.runs.resuming import (
    begin_or_continue,
    begun,
    check_inputs,
    data_check,
)
from circuitcut.experiments.saved_runs import (
    check_fit,
    mask_at,
    new_run,
    selection_of,
    with_flags_of_run,
)
from circuitcut.experiments.scores import warning_of_cut
from circuitcut.experiments.whereabouts import Whereabouts
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.holding import check_holdable, cuts_edges
from circuitcut.relearning.lora import adapted_modules
from circuitcut.relearning.probe import probe_conditions
from circuitcut.relearning.protocol import mask_hash, relearn
from circuitcut.relearning.records import ConditionFiles, ConditionRun
from circuitcut.relearning.statistics import describe
from circuitcut.relearning.study import Findings, RelearnSettings, Study
from circuitcut.reports.tables import (
    AREA,
    RECOVERY_NOTE,
    format_table,
    recovery_rows,
    relearning_rows,
)
from circuitcut.reports.words import metric_name
from circuitcut.tasks.base import Corpus
from circuitcut.training.fit_state import saved_steps
from circuitcut.training.tracking import Tracker


def main(config: RelearnConfig) -> Path:
    """Begin a run, or continue one that no other process works on."""
    return begin_or_continue(config, config.resume, "relearn", _relearned)


def _relearned(config: RelearnConfig, resumed: RunDirectory | None) -> Path:
    """Relearn under every condition, describe, and say where the concept went."""
    mask_path, mask = _mask(config)
    mask_sha256 = mask_hash(mask)
    check_inputs(resumed, {"mask_sha256": mask_sha256})
    given = replace(config, mask=mask_path)
    config = with_flags_of_run(given, mask_path)
    if resumed is None:
        RunDirectory.check(config.run_dir)
    same = same_data(mask, mask_path, given, allow_other=config.allow_other_data)

    def check_data(corpus: Corpus) -> None:
        data_check(resumed)(corpus)
        same(corpus)

    experiment = with_base_model(load(config, check_data))
    config = _fitted(config, mask, mask_path, experiment)
    settings = _settings(config, built_in=bool(experiment.base.get("from_scratch")))
    experiment = resolved(experiment, config, **_resolved_flags(config, settings))
    made_with = provenance_of(experiment, mask_sha256=mask_sha256)
    begun(resumed, made_with)
    warning = warning_of_cut(mask_path, mask, experiment)
    if warning:
        logger.warning("%s Its relearning shows no recovery.", warning)
    if other_data := other_data_warning(mask, experiment):
        logger.warning("%s", other_data)
        warning = f"{warning} {other_data}" if warning else other_data
    never_learned = None
    if "never_learned" in config.conditions:
        never_learned = prepare(config, without_concept=True)
        weights = never_learned.loaded.weights_sha256
        made_with = {**made_with, "never_learned_sha256": weights}
        check_inputs(resumed, made_with)
    run = resumed or new_run(experiment, given, "relearn", made_with=made_with)
    folder = run.path / "conditions"
    lock = nullcontext() if resumed else run.locked()
    with lock, Tracker(run) as tracker:
        study = _study(settings, experiment, mask, never_learned, made_with)
        probes = _probes(config, study) if config.probe and run.is_writer else []
        whereabouts = Whereabouts(experiment, mask, mask_path, config.fresh_mask)
        if resumed:
            _cut_metrics(run, config.combined(), folder)
        runs = relearn(
            study,
            config.combined(),
            folder,
            resume=resumed is not None,
            findings=Findings(
                at_end=whereabouts if config.redistribute else None,
                end_is_slow=config.redistribute and config.fresh_mask,
                on_log=lambda condition, step, numbers: tracker.scalars(
                    step, {f"{condition.key}/{name}": v for name, v in numbers.items()}
                ),
            ),
        )
        if not run.is_writer:  # the first of several processes has the measurements
            return run.path
        results = header("relearn", experiment, mask=mask) | {
            "mask": str(mask_path),
            "selection": selection_of(mask_path),
            **describe(study.task, runs, seed=config.seed),
            "never_learned": never_learned.base if never_learned else None,
            "probe": probes,
            "after": _after(runs),
            "words_note": whereabouts.words_note,
            "warning": warning,
            "provenance": made_with,
            "next": command("report", {"runs": [mask_path, run.path]}),
        }
        run.write_results(results)
    _show(results, run.path)
    return run.path


def _resolved_flags(config: RelearnConfig, settings: RelearnSettings) -> dict[str, Any]:
    """The flags that were left to default values, with these."""
    names = ("n_steps", "batch_size", "n_evaluations", "lr")
    return {
        "limits": config.limits or usual_flags(config)["limits"],
        **{name: getattr(settings, name) for name in names},
    }


def _cut_metrics(
    run: RunDirectory, conditions: Sequence[Condition], folder: Path
) -> None:
    """Cut off what a killed process logged after the last checkpoint it wrote."""
    for condition in conditions:
        files = ConditionFiles(folder / condition.key, {})
        if not files.is_finished:
            first = saved_steps(files.checkpoints)
            run.truncate_metrics(first, prefix=f"{condition.key}/")


def _mask(config: RelearnConfig) -> tuple[Path, FrozenMask]:
    """The mask asked for, or that of the newest finished run.

    The processes are connected by then: all must take the same run.
    """
    path = config.mask or by_first(
        lambda: RunDirectory.newest(config.run_dir, "train_mask").path
    )
    mask = mask_at(path)
    if config.fresh_mask:
        _check_fresh_mask(mask, path)
    return path, mask


def _settings(config: RelearnConfig, *, built_in: bool) -> RelearnSettings:
    """The part that the protocol reads."""
    usual = usual_flags(config)
    given = {name: getattr(config, name) or usual[name] for name in usual}
    del given["limits"]
    return RelearnSettings(
        **given,
        lr=usual_lr(config.trained, built_in) if config.lr is None else config.lr,
        weight_decay=config.weight_decay,
        optimiser=config.optimiser,
        schedule=config.schedule,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        trained=config.trained,
    )


def _fitted(
    config: RelearnConfig, mask: FrozenMask, path: Path, experiment: Experiment
) -> RelearnConfig:
    """The flags as mask and model allow; refuses what they cannot follow."""
    check_fit(mask, path, experiment, config.allow_other_weights)
    check_holdable(mask, set(config.holdings))
    if lora_rank(config.trained) is not None:
        adapted_modules(experiment.loaded.model, mask)
    if cuts_edges(mask) and (config.probe or config.redistribute):
        logger.info("a mask on edges: no probes and no ranking of units afterwards")
        config = replace(config, probe=False, redistribute=False)
    size = _settings(config, built_in=False).batch_size
    check_relearning(experiment.loaded.model, mask.sites, config.max_length, size)
    return _with_possible_limits(config, experiment)


def _study(
    settings: RelearnSettings,
    experiment: Experiment,
    mask: FrozenMask,
    never_learned: Experiment | None,
    made_with: Mapping[str, Any],
) -> Study:
    return Study(
        experiment.task,
        experiment.loaded,
        mask,
        settings,
        never_learned=never_learned.loaded if never_learned else None,
        accelerator=experiment.accelerator,
        provenance=made_with,
    )


def _probes(config: RelearnConfig, study: Study) -> list[dict[str, Any]]:
    other = study.never_learned
    return probe_conditions(
        study.task,
        study.loaded.model,
        study.mask,
        config.combined(),
        never_learned=other.model if other else None,
        seed=config.seed,
    )


def _after(runs: list[ConditionRun]) -> list[dict[str, Any]]:
    """Where the concept is after relearning, by condition."""
    return [
        {
            "condition": r.condition.name,
            "holding": r.condition.holding,
            "seed": r.condition.seed,
            "limit": r.condition.limit,
            **r.at_end,
        }
        for r in runs
        if r.at_end
    ]


def _check_fresh_mask(mask: FrozenMask, path: Path) -> None:
    """Refuse a fresh mask where its gates cannot be put in beside the held one.

    Raises:
        UserError: When the mask is one of weights or edges, or was not trained.
    """
    if is_run(path) and (kind := RunDirectory.open(path).kind) != "train_mask":
        raise UserError(
            "--fresh_mask needs a train_mask run, whose settings the fresh mask is "
            f"trained with, got {kind} {path}; leave --fresh_mask out"
        )
    for kind in ("weights", "edges"):
        if any(site.kind == kind for site in mask.sites):
            raise UserError(
                f"--fresh_mask needs a mask of neurons, heads or hidden units, got one "
                f"of {kind}: those cannot be gated again while the mask holds; leave "
                "--fresh_mask out"
            )


def _with_possible_limits(
    config: RelearnConfig, experiment: Experiment
) -> RelearnConfig:
    """The limits, where the concept has the examples that they are limited to.

    Raises:
        UserError: When a limit that was asked for is above the examples there are.
    """
    limited = {c.limit for c in config.combined() if c.name != "retain_only"}
    try:
        for limit in limited:
            experiment.task.finetune_batch("relearn", 0, size=1, seed=0, limit=limit)
    except UserError:
        if config.limits:
            raise
        return replace(config, limits=["all"])
    return config


def _show(results: dict[str, Any], path: Path) -> None:
    names = {
        metric_name(results["concept_metric"]): "concept",
        metric_name(results["retain_metric"]): "rest",
    }
    for title, rows in (
        ("scores at the start and the end of relearning", relearning_rows(results)),
        ("recovery against the uncut model", recovery_rows(results)),
    ):
        if rows:
            print(f"\n{title}")
            short = [_for_terminal(row, names) for row in rows]
            print(format_table(short, list(short[0])))
    print(f"\n{'; '.join(f'{side}: {name}' for name, side in names.items())}")
    if results["recovery"]:
        print(textwrap.fill(RECOVERY_NOTE, 100))
    print("intervals: results.json and the report")
    if results["warning"]:
        print(f"warning: {results['warning']}")
    print(f"run: {path}\nnext: {results['next']}")


def _for_terminal(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row without intervals, under short headings.

    Args:
        names: Name of a main score -> its side.
    """
    short = {**names, "steps to ": "to ", "recovery: ": "", AREA: "mean"}
    cells = {}
    for key, cell in row.items():
        for long, name in short.items():
            key = key.replace(long, name)
        cells[key] = cell.split(" [")[0] if isinstance(cell, str) else cell
    return cells


if __name__ == "__main__":
    run_script(main, RelearnConfig)
